//! `viv build`: makes an image.
use super::carry::words;
use super::pull::full_name;
use super::{Context, operation};
use crate::interrupt::Interrupt;
use crate::{output, size};
use std::path::{Path, PathBuf};
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::image::{DEFAULT, Image, ImageBuild};
use viv_model::{Fault, Kind};
use viv_oci::{Logins, Reference};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Images:\n  default  a small Linux that boots in a moment: Debian's kernel, busybox, our agent\n  \
                  debian   a full Debian with systemd and apt on a disk\n  \
                  kernel   a kernel for virtual machines from Debian's sources; the default guest and images of containers\n           \
                  boot it while it is there (needs gcc, make, flex, bison, bc and libelf-dev; takes minutes)\n\n\
                  With --package or --run, debian becomes an image of containers: Debian's essential packages and apt, those packages with what\n\
                  they depend on, and what the commands change, each in a VM of the image so far, as root and with a network to the outside.\n\
                  The same packages and commands give the same bytes: no file in it is newer than the newest of the packages (or than\n\
                  SOURCE_DATE_EPOCH, which the commands have, too), and logs, caches and identities are left out. What a command itself makes\n\
                  of the time, of chance or of the network is its own affair.\n\n  \
                  viv build debian --package nginx --run 'echo hello > /var/www/html/index.html' --tag web --cmd '[\"nginx\",\"-g\",\"daemon off;\"]'\n  \
                  viv run -d -p 8080:80 web"
)]
pub(crate) struct Args {
    /// What to build
    #[arg(default_value = DEFAULT)]
    image: String,
    /// The size of its disk: 4G
    #[arg(long, value_parser = size::mib)]
    size: Option<u64>,
    /// debian: with this package and what it depends on, NAME or NAME=VERSION; may be given several times
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// debian: run this in its shell, in a VM, and keep what it changes; may be given several times
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    run: Vec<String>,
    /// debian with these: the new image's name, a word or REGISTRY/REPOSITORY:TAG; else debian- and the packages
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    /// debian with these: what runs in it if nothing is said: ["serve","-v"], or words without quotes; bash if not given
    #[arg(long, value_name = "WORDS")]
    cmd: Option<String>,
    /// Build it even if it is there and up to date
    #[arg(long)]
    force: bool,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    detach: operation::Detach,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let interrupt = Interrupt::new(context.client.clone());
    let has_additions = !args.packages.is_empty() || !args.run.is_empty();
    if !has_additions && (args.tag.is_some() || args.cmd.is_some()) {
        return Err(Fault::new(
            Kind::Usage,
            "--tag and --cmd are for images with packages or commands of yours",
            "add some: viv build debian --package NAME --run 'COMMAND'; an image's further name: viv image tag",
        ));
    }
    let ask = ImageBuild {
        size_mib: args.size,
        force: args.force,
        packages: args.packages,
        run: args.run,
        tag: args.tag.map(|tag| full_name(&tag).map(|full| full.unwrap_or(tag))).transpose()?,
        command: args.cmd.as_deref().map(words).transpose()?,
        source_date_epoch: if has_additions { source_date_epoch()? } else { None },
        ..ImageBuild::default()
    };
    if args.detach.is_wanted() {
        let ask = with_agent(ask)?;
        return operation::detach(context, Request::new(Route::ImageBuild, &[&args.image]).body(&ask));
    }
    let built = build(&context.client, &interrupt, &args.image, ask);
    if let Some(status) = interrupt.status() {
        note_given_up();
        return Ok(status);
    }
    print(context, &built?, args.quiet);
    Ok(0)
}

/// The latest time of what is built, as its specification has it (reproducible-builds.org, SOURCE_DATE_EPOCH).
fn source_date_epoch() -> Result<Option<u64>, Fault> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    // Files have no later time in 33 bits of seconds.
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| *seconds < 1 << 33);
    seconds.map(Some).ok_or_else(|| {
        let message = format!("SOURCE_DATE_EPOCH is {:?}", text.to_string_lossy());
        Fault::new(Kind::Usage, message, "let it be a time in seconds since 1970, or unset it")
    })
}

/// Prints the image that was made.
pub(crate) fn print(context: &Context, image: &Image, quiet: bool) {
    if context.json {
        output::json(image);
    } else {
        output::print(&line(image, quiet));
    }
}

/// An image in a line, or its name.
pub(crate) fn line(image: &Image, quiet: bool) -> String {
    match quiet {
        true => format!("{}\n", image.name),
        false => format!("{}  {}  {}\n", image.name, size::bytes(image.size_bytes), image.summary),
    }
}

pub(crate) fn note_given_up() {
    output::note("the build was given up; nothing is left of it");
}

/// Has the service build an image, and shows how it goes on.
pub(crate) fn build(
    client: &Client,
    interrupt: &Interrupt,
    name: &str,
    ask: ImageBuild,
) -> Result<Image, Fault> {
    let ask = with_agent(ask)?;
    let built = |logins| {
        let request = Request::new(Route::ImageBuild, std::slice::from_ref(&name)).body(&ask);
        operation::attend(
            client,
            interrupt,
            request.registries(logins),
            &format!("the build of image {name:?}"),
        )
    };
    if !ask.if_missing {
        return built(logins(name));
    }
    // What is there needs nobody's leave, and to ask a helper for credentials may take a while.
    match built(None) {
        Err(fault) if fault.kind == Kind::Denied => match logins(name) {
            None => Err(fault),
            logins => built(logins),
        },
        done => done,
    }
}

/// Who this user is to the registry of an image: the service's may be another one, or know another environment.
pub(super) fn logins(image: &str) -> Option<String> {
    let is_elsewhere = Reference::is_one(image);
    let reference = is_elsewhere.then(|| Reference::parse(image, Path::new("/")).ok())??;
    Some(Logins::of(&reference)).filter(|logins| !logins.is_empty()).map(|logins| logins.encode())
}

/// The service may have been started with another environment.
pub(super) fn with_agent(ask: ImageBuild) -> Result<ImageBuild, Fault> {
    let agent = match std::env::var_os("VIV_AGENT").filter(|path| !path.is_empty()) {
        Some(path) => Some(std::path::absolute(PathBuf::from(&path)).map_err(|error| {
            Fault::new(Kind::Usage, format!("VIV_AGENT: {error}"), "let it name the agent's static binary")
        })?),
        None => None,
    };
    Ok(ImageBuild { agent, ..ask })
}
