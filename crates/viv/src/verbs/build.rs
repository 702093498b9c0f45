//! `viv build`: makes an image.
use super::Context;
use crate::interrupt::{Interrupt, Stage};
use crate::progress::Bar;
use crate::{output, size};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::image::{DEFAULT, Image, ImageBuild, WorkLine};
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Images:\n  default  a small Linux that boots in a moment: Debian's kernel, busybox, our agent\n  \
                  debian   a full Debian with systemd and apt on a disk\n  \
                  kernel   a kernel for virtual machines from Debian's sources; the default guest and images of containers\n           \
                  boot it while it is there (needs gcc, make, flex, bison, bc and libelf-dev; takes minutes)"
)]
pub(crate) struct Args {
    /// What to build
    #[arg(default_value = DEFAULT)]
    image: String,
    /// The size of its disk: 4G
    #[arg(long, value_parser = size::mib)]
    size: Option<u64>,
    /// Build it even if it is there and up to date
    #[arg(long)]
    force: bool,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<u8, Fault> {
    let interrupt = Interrupt::new(context.client.clone());
    let ask = ImageBuild { size_mib: args.size, force: args.force, ..ImageBuild::default() };
    let built = build(&context.client, &interrupt, &args.image, ask);
    if let Some(status) = interrupt.status() {
        note_given_up();
        return Ok(status);
    }
    print(context, &built?, args.quiet);
    Ok(0)
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
    mut ask: ImageBuild,
) -> Result<Image, Fault> {
    // The service may have been started with another environment.
    ask.agent = match std::env::var_os("VIV_AGENT").filter(|path| !path.is_empty()) {
        Some(path) => Some(std::path::absolute(PathBuf::from(&path)).map_err(|error| {
            Fault::new(Kind::Usage, format!("VIV_AGENT: {error}"), "let it name the agent's static binary")
        })?),
        None => None,
    };
    let request = Request::new(Route::ImageBuild, std::slice::from_ref(&name));
    follow(client, interrupt, request, &ask, &format!("the build of image {name:?}"))
}

/// Has the service do a long work, and shows how it goes on.
pub(crate) fn follow<T: DeserializeOwned>(
    client: &Client,
    interrupt: &Interrupt,
    request: Request,
    ask: &impl Serialize,
    what: &str,
) -> Result<T, Fault> {
    let job = format!("work-{}", std::process::id());
    interrupt.enter(Stage::Building { job: job.clone() });
    let mut outcome = None;
    let mut bar = Bar::new();
    let request = request.query(format!("job={job}")).body(ask);
    let read = client.lines(request, |line: WorkLine<T>| match line {
        WorkLine::Progress(progress) => bar.show(&progress),
        WorkLine::Done(done) => outcome = Some(Ok(done)),
        WorkLine::Failed(fault) => outcome = Some(Err(fault)),
    });
    bar.clear();
    interrupt.enter(Stage::Plain);
    read?;
    outcome.unwrap_or_else(|| {
        Err(Fault::new(
            Kind::Error,
            format!("{what} broke off: the service ended"),
            "nothing is left of it; do it again",
        ))
    })
}
