//! `viv create -f`: makes VMs from a document; `viv schema`: what such a document may say.
use super::{Context, build, pull};
use crate::document::{self, Document};
use crate::interrupt::{Interrupt, Stage};
use crate::output;
use std::io::Read;
use std::path::{Path, PathBuf};
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::image::{DEFAULT, ImageBuild, is_disk_file};
use viv_api::vm::{Vm, VmCreate};
use viv_model::{Fault, Kind};

/// 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;
/// Most bytes of a document.
const DOCUMENT_MAX: u64 = 1 << 20;
/// The JSON Schema of a document, also in the repository, for editors; a test makes it anew.
const SCHEMA: &str = include_str!("../../../../docs/vm.schema.json");

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Paths in the document begin at the document's directory. What is left out is as with viv run.\n\n\
                        viv inspect web > web.json          all that makes up a VM\n\
                        viv create -f web.json --name web2  another one like it; start it: viv start web2\n\
                        echo '{name: db, cpus: 2, memory_mib: 1024, image: debian, disks: [{path: db.qcow2}]}' |\n    \
                            viv create -f -\n\n\
                        viv schema > vm.schema.json         for editors, which check and complete then"
)]
pub(crate) struct Create {
    #[command(flatten)]
    source: Source,
    /// Its name, instead of the document's
    #[arg(long)]
    name: Option<String>,
}

/// Where a document is.
#[derive(clap::Args, Debug)]
pub(crate) struct Source {
    /// The document, in YAML or JSON: a VM, a list of them, or what viv inspect printed; - reads standard input
    #[arg(short, long, value_name = "FILE|-")]
    file: PathBuf,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Schema {}

pub(crate) fn schema(_: Schema) -> Result<u8, Fault> {
    output::print(SCHEMA);
    Ok(0)
}

pub(crate) fn create(context: &Context, args: Create) -> Result<u8, Fault> {
    let mut asks: Vec<VmCreate> = args.source.read()?.into_iter().map(|document| document.ask).collect();
    if let Some(name) = args.name {
        let [ask] = asks.as_mut_slice() else {
            let text = format!("{} VMs cannot all be called {name:?}", asks.len());
            return Err(Fault::new(Kind::Usage, text, "leave out --name, or describe one VM"));
        };
        ask.name = Some(name);
    }
    let mut made = Vec::new();
    for ask in asks {
        let Some(vm) = make(context, ask)? else { return Ok(INTERRUPTED) };
        if !context.json {
            output::print(&format!("{}\n", vm.name));
        }
        made.push(vm);
    }
    if context.json {
        output::json(&made);
    }
    Ok(0)
}

/// Makes a VM, and before it the image that is missing; nothing if that was interrupted.
pub(crate) fn make(context: &Context, mut ask: VmCreate) -> Result<Option<Vm>, Fault> {
    if ask.program.is_some() {
        return context.client.json(Request::new(Route::VmCreate, &[]).body(&ask)).map(Some);
    }
    let interrupt = Interrupt::new(context.client.clone());
    ask.machine().check()?; // before an image is built for it
    let is_file = ask.image.as_deref().is_some_and(is_disk_file);
    if !is_file && (ask.kernel.is_none() || ask.image.is_some()) {
        let name = ask.image.get_or_insert_with(|| DEFAULT.to_string()).clone();
        let name = pull::full_name(&name)?.unwrap_or(name);
        ask.image = Some(name.clone());
        let missing = ImageBuild { if_missing: true, ..ImageBuild::default() };
        let built = build::build(&context.client, &interrupt, &name, missing);
        if interrupt.status().is_some() {
            build::note_given_up();
            return Ok(None);
        }
        built?;
    }
    interrupt.enter(Stage::Plain);
    context.client.json(Request::new(Route::VmCreate, &[]).body(&ask)).map(Some)
}

impl Source {
    /// The VMs that the document describes.
    pub(crate) fn read(&self) -> Result<Vec<Document>, Fault> {
        read(&self.file)
    }
}

fn read(file: &Path) -> Result<Vec<Document>, Fault> {
    let here = std::env::current_dir().unwrap_or_default();
    let (name, base) = match file == Path::new("-") {
        true => ("standard input".to_string(), here),
        false => (file.display().to_string(), here.join(file.parent().unwrap_or(Path::new("")))),
    };
    let failed = |error: std::io::Error| {
        let kind = Kind::of_file(&error);
        Fault::new(
            kind,
            format!("cannot read {name}: {error}"),
            "name the document: viv create -f FILE, or -",
        )
    };
    let mut text = Vec::new();
    let reader: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(std::fs::File::open(file).map_err(failed)?),
    };
    reader.take(DOCUMENT_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > DOCUMENT_MAX {
        let text =
            format!("{name} is larger than {} KiB, which no description of VMs is", DOCUMENT_MAX >> 10);
        return Err(Fault::new(Kind::Usage, text, "name the document: viv create -f FILE, or -"));
    }
    let text = String::from_utf8(text).map_err(|_| {
        Fault::new(Kind::Usage, format!("{name} is not text (UTF-8)"), "write YAML or JSON: viv schema")
    })?;
    document::parse(&text, &name, &base)
}
