//! `viv images`, `viv image ls|rm`: the images in the store.
use super::{Context, each_of};
use crate::{output, size};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::image;
use viv_model::Fault;

/// Digits of a digest that are shown.
const DIGEST_DIGITS: usize = 12;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Image {
    #[command(subcommand)]
    verb: ImageVerb,
}

#[derive(clap::Subcommand, Debug)]
enum ImageVerb {
    /// List images
    Ls(Args),
    /// Remove images; VMs made from them live on
    Rm {
        /// Names
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

pub(crate) fn image(context: &Context, args: Image) -> Result<u8, Fault> {
    match args.verb {
        ImageVerb::Ls(args) => list(context, args),
        ImageVerb::Rm { images } => rm(context, &images),
    }
}

pub(crate) fn list(context: &Context, args: Args) -> Result<u8, Fault> {
    let images: Vec<image::Image> = context.client.json(Request::new(Route::ImageList, &[]))?;
    if context.json {
        output::json(&images);
    } else if args.quiet {
        output::print(&images.iter().map(|image| image.name.clone() + "\n").collect::<String>());
    } else {
        let rows: Vec<_> = images
            .iter()
            .map(|image| {
                vec![
                    image.name.clone(),
                    image.digest.chars().take(DIGEST_DIGITS).collect(),
                    size::bytes(image.size_bytes),
                    image.created_at.ago(),
                    image.summary.clone(),
                ]
            })
            .collect();
        output::table(&["NAME", "DIGEST", "SIZE", "BUILT", "WHAT"], &rows);
    }
    Ok(0)
}

fn rm(context: &Context, names: &[String]) -> Result<u8, Fault> {
    let remove = |name: &str| context.client.json(Request::new(Route::ImageRemove, &[name])).map(Some);
    each_of(context, names, remove, |it: &image::Image| &it.name)
}
