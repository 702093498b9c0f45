//! `viv images`, `viv image …`: the images in the store.
use super::pull::full_name;
use super::{Context, each_of};
use crate::progress::Waiting;
use crate::{output, size};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::image::{self, ImageDetails, ImageTag, ImageVerified, Pruned};
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
    /// Show what is in an image and where it came from
    Show {
        /// Its name
        image: String,
    },
    /// Show how an image of containers came to be, the newest step first
    History {
        /// Its name
        image: String,
    },
    /// Read all of images and compare it with their digests
    Verify {
        /// Names; all if none is given
        #[arg(value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Give an image one more name
    Tag {
        /// Its name
        image: String,
        /// The other
        name: String,
    },
    /// Remove what no image has any more, and downloads that broke off
    Prune,
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
        ImageVerb::Show { image } => show(context, &image),
        ImageVerb::History { image } => history(context, &image),
        ImageVerb::Verify { images } => verify(context, images),
        ImageVerb::Tag { image, name } => tag(context, &image, name),
        ImageVerb::Prune => prune(context),
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

/// How an image is named to the service.
fn named(image: &str) -> Result<String, Fault> {
    Ok(full_name(image)?.unwrap_or_else(|| image.to_string()))
}

fn details(context: &Context, image: &str) -> Result<ImageDetails, Fault> {
    context.client.json(Request::new(Route::ImageDetails, &[&named(image)?]))
}

fn show(context: &Context, name: &str) -> Result<u8, Fault> {
    let details = details(context, name)?;
    if context.json {
        output::json(&details);
        return Ok(0);
    }
    let image = &details.image;
    let mut rows = vec![
        ("name", image.name.clone()),
        ("digest", format!("sha256:{}", image.digest)),
        ("size", size::bytes(image.size_bytes)),
        ("got", image.created_at.ago()),
        ("what", image.summary.clone()),
    ];
    let mut row = |name, value: Option<String>| {
        rows.extend(value.filter(|value| !value.is_empty()).map(|value| (name, value)))
    };
    row("processors", image.cpus.map(|cpus| cpus.to_string()));
    row("memory", image.memory_mib.map(|mib| size::bytes(mib.saturating_mul(1 << 20))));
    row("manifest", details.source_digest.clone());
    row("made", details.made.clone());
    if let Some(process) = &image.process {
        row("entrypoint", Some(process.entrypoint.join(" ")));
        row("command", Some(process.command.join(" ")));
        row("user", process.user.clone());
        row("directory", process.cwd.clone());
        row("ports", Some(process.ports.join(", ")));
        row("volumes", Some(process.volumes.join(", ")));
        row("health check", process.health.as_ref().map(|check| check.argv.join(" ")));
        row("stop signal", process.stop_signal.map(|signal| signal.to_string()));
        for (name, value) in &process.env {
            row("variable", Some(format!("{name}={value}")));
        }
    }
    for layer in &details.layers {
        let shared = match layer.shared_with {
            0 => String::new(),
            1 => ", also in another image".to_string(),
            others => format!(", also in {others} other images"),
        };
        row("layer", Some(format!("{}  {}{shared}", short(&layer.digest), size::bytes(layer.size_bytes))));
    }
    for (name, value) in &details.labels {
        row("label", Some(format!("{name}={value}")));
    }
    row("packages", (!details.packages.is_empty()).then(|| details.packages.len().to_string()));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 2;
    output::print(
        &rows.iter().map(|(name, value)| format!("{name:width$}{}\n", plain(value))).collect::<String>(),
    );
    Ok(0)
}

fn history(context: &Context, name: &str) -> Result<u8, Fault> {
    let details = details(context, name)?;
    if context.json {
        output::json(&details.history);
        return Ok(0);
    }
    let rows: Vec<_> = details
        .history
        .iter()
        .rev()
        .map(|step| {
            let size = step.size_bytes.map_or_else(|| "-".to_string(), size::bytes);
            vec![
                step.created.clone().unwrap_or_default(),
                size,
                plain(&step.created_by),
                plain(&step.comment),
            ]
        })
        .collect();
    output::table(&["CREATED", "SIZE", "BY", "COMMENT"], &rows);
    Ok(0)
}

/// What a stranger wrote, without what a terminal obeys.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn short(digest: &str) -> String {
    digest.chars().take(DIGEST_DIGITS).collect()
}

fn verify(context: &Context, mut names: Vec<String>) -> Result<u8, Fault> {
    if names.is_empty() {
        let all: Vec<image::Image> = context.client.json(Request::new(Route::ImageList, &[]))?;
        names = all.into_iter().map(|image| image.name).collect();
    }
    let mut found = Vec::new();
    for name in &names {
        let _waiting = Waiting::new(format!("reading {name}"));
        let verified: ImageVerified =
            context.client.json(Request::new(Route::ImageVerify, &[&named(name)?]))?;
        found.push(verified);
    }
    if context.json {
        output::json(&found);
    } else {
        let rows: Vec<_> = found
            .iter()
            .map(|image| {
                let state =
                    if image.damage.is_empty() { "whole".to_string() } else { image.damage.join("; ") };
                vec![image.name.clone(), size::bytes(image.bytes), state]
            })
            .collect();
        output::table(&["NAME", "READ", "STATE"], &rows);
    }
    Ok(u8::from(found.iter().any(|image| !image.damage.is_empty())))
}

fn tag(context: &Context, image: &str, name: String) -> Result<u8, Fault> {
    let ask = ImageTag { name: named(&name)? };
    let tagged: image::Image =
        context.client.json(Request::new(Route::ImageTag, &[&named(image)?]).body(&ask))?;
    match context.json {
        true => output::json(&tagged),
        false => output::print(&format!("{}\n", tagged.name)),
    }
    Ok(0)
}

fn prune(context: &Context) -> Result<u8, Fault> {
    let pruned: Pruned = context.client.json(Request::new(Route::ImagePrune, &[]))?;
    match context.json {
        true => output::json(&pruned),
        false => output::print(&format!("{} are free now\n", size::bytes(pruned.bytes))),
    }
    Ok(0)
}

fn rm(context: &Context, names: &[String]) -> Result<u8, Fault> {
    let remove =
        |name: &str| context.client.json(Request::new(Route::ImageRemove, &[&named(name)?])).map(Some);
    each_of(context, names, remove, |it: &image::Image| it.name.clone())
}
