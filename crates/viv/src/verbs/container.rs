//! What `viv run` has for images of containers alone.
use super::mount::Mount;
use viv_model::{Fault, Kind, TmpfsMount, check_hostname, hostname_word};

/// The one platform whose images run here.
const PLATFORM: &str = "linux/amd64";

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
    /// Have PATH in the guest's memory, for what is to be on no disk; with size=64m and other options of tmpfs behind it
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<TmpfsMount>,
    /// The longer form of -v and --tmpfs: type=bind|volume|tmpfs,source=…,target=…,readonly
    #[arg(long = "mount", value_name = "KEY=VALUE,…")]
    mounts: Vec<Mount>,
    /// What the guest is called by itself, if not as its VM
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// The platform of its image: linux/amd64 is the only one that runs here
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Option<String>,
    /// Talk to its registry without TLS, or with any certificate
    #[arg(long)]
    pub(super) insecure: bool,
}

fn platform(text: &str) -> Result<String, String> {
    let fits = |known: &str| known.split('/').eq(text.split('/').take(2));
    match fits(PLATFORM) || fits("linux/x86_64") {
        true => Ok(PLATFORM.to_string()),
        false => Err(format!("images of {text} cannot run here: use {PLATFORM}, or leave it out")),
    }
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
    /// What `-v` would have said of its mounts.
    pub(super) fn shares(&self) -> impl Iterator<Item = &String> {
        self.mounts.iter().filter_map(|mount| match mount {
            Mount::Share(text) => Some(text),
            Mount::Memory(_) => None,
        })
    }

    /// The same, for who has no other mounts.
    pub(super) fn take_shares(&mut self) -> Vec<String> {
        let shares = self.shares().cloned().collect();
        self.mounts.clear();
        shares
    }

    fn memory(&self) -> impl Iterator<Item = &TmpfsMount> {
        let of_mounts = self.mounts.iter().filter_map(|mount| match mount {
            Mount::Memory(mount) => Some(mount),
            Mount::Share(_) => None,
        });
        self.tmpfs.iter().chain(of_mounts)
    }

    /// What is added to the command line of its kernel.
    pub(super) fn append(&self, own: Option<&str>) -> Result<Option<String>, Fault> {
        self.hostname.as_deref().map_or(Ok(()), check_hostname)?;
        let ours = self.read_only.then(|| "ro".to_string()).into_iter();
        let ours = ours.chain(self.memory().map(TmpfsMount::word));
        let ours = ours.chain(self.hostname.as_deref().map(hostname_word));
        let words: Vec<String> = own.map(str::to_string).into_iter().chain(ours).collect();
        Ok(Some(words.join(" ")).filter(|_| !words.is_empty()))
    }

    /// Refuses what is asked of something else.
    pub(super) fn check_other(&self) -> Result<(), Fault> {
        let (text, fix) = if self.read_only {
            (
                "only the files of an image of containers can be read-only",
                "leave out --read-only; a disk is only read with --disk FILE,ro",
            )
        } else if self.memory().next().is_some() {
            ("only an image of containers is given a tmpfs", "leave it out; mount one in the guest")
        } else if self.hostname.is_some() {
            ("only the guest of an image of containers is named so", "leave out --hostname; use --name")
        } else {
            return Ok(());
        };
        Err(Fault::new(Kind::Usage, text, fix))
    }
}
