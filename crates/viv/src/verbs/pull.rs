//! `viv pull`: gets images of containers.
use super::{Context, build, operation};
use crate::interrupt::Interrupt;
use crate::output;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::image::ImageBuild;
use viv_model::{Fault, Kind};
use viv_oci::Reference;

#[derive(clap::Args, Debug)]
#[command(after_help = "An image is named by where it is:\n  \
                  docker.io/library/debian:12          in a registry; also with @sha256:…\n  \
                  oci:DIR:TAG                          in an OCI layout, a directory\n  \
                  oci-archive:FILE, docker-archive:FILE   in a tar, also of docker save and podman save\n\n\
                  Credentials, mirrors and certificates are those of docker and podman: ~/.docker/config.json, auth.json, registries.conf, daemon.json, certs.d")]
pub(crate) struct Args {
    /// Where they are
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Talk to their registry without TLS, or with any certificate
    #[arg(long)]
    insecure: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    detach: operation::Detach,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let interrupt = Interrupt::new(context.client.clone());
    let mut pulled = Vec::new();
    for image in &args.images {
        let name = full_name(image)?.ok_or_else(|| {
            Fault::new(
                Kind::Usage,
                format!("{image:?} does not say where the image is"),
                format!("with its registry: docker.io/{image}; or viv build {image}, if it is one that is built here"),
            )
        })?;
        let ask = ImageBuild { insecure: args.insecure, ..ImageBuild::default() };
        if args.detach.is_wanted() {
            let ask = build::with_agent(ask)?;
            let names = [name.as_str()];
            let request = Request::new(Route::ImageBuild, &names).body(&ask);
            operation::detach(context, request.registries(build::logins(&name)))?;
            continue;
        }
        let built = build::build(&context.client, &interrupt, &name, ask);
        if let Some(status) = interrupt.status() {
            output::note("the download was given up; what has come is kept for the next time");
            return Ok(status);
        }
        pulled.push(built?);
    }
    if args.detach.is_wanted() {
        return Ok(0);
    }
    if context.json {
        output::json(&pulled);
        return Ok(0);
    }
    output::print(&pulled.iter().map(|image| build::line(image, args.quiet)).collect::<String>());
    Ok(0)
}

/// The name in full of an image that is somewhere else: relative paths are below the working directory.
pub(crate) fn full_name(text: &str) -> Result<Option<String>, Fault> {
    if !Reference::is_one(text) {
        return Ok(None);
    }
    let dir = std::env::current_dir().map_err(|error| {
        Fault::new(
            Kind::Error,
            format!("there is no working directory: {error}"),
            "change into one that is there",
        )
    })?;
    Reference::parse(text, &dir).map(|reference| Some(reference.to_string()))
}
