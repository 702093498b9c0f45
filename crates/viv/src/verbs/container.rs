//! What `viv run` has for images of containers alone.
use viv_model::{Fault, Kind};

/// Options of images of containers, and where they come from.
#[derive(clap::Args, Debug)]
pub(crate) struct ContainerArgs {
    /// When to get an image that is somewhere else: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing", hide_possible_values = true, value_enum)]
    pub(super) pull: Pull,
    /// Run this in the place of the image's entry point, and without its command; "" for nothing in its place
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Let nothing be written to the image's files in the guest, but for its volumes: -v /tmp
    #[arg(long)]
    read_only: bool,
    /// Talk to its registry without TLS, or with any certificate
    #[arg(long)]
    pub(super) insecure: bool,
}

/// When an image that is somewhere else is got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Pull {
    /// If it is not there
    Missing,
    /// If there is a newer one
    Always,
    /// Not at all
    Never,
}

impl ContainerArgs {
    /// What is added to the command line of its kernel.
    pub(super) fn append(&self, own: Option<&str>) -> Option<String> {
        match (self.read_only, own) {
            (false, own) => own.map(str::to_string),
            (true, own) => Some(format!("{} ro", own.unwrap_or_default()).trim_start().to_string()),
        }
    }

    /// Refuses what is asked of something else.
    pub(super) fn check_other(&self) -> Result<(), Fault> {
        if !self.read_only {
            return Ok(());
        }
        Err(Fault::new(
            Kind::Usage,
            "only the files of an image of containers can be read-only",
            "leave out --read-only; a disk is only read with --disk FILE,ro",
        ))
    }
}
