//! `viv context`: host services on other machines, by name.
use super::Whom;
use crate::output;
use crate::remote::Remote;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use viv_host::Places;
use viv_model::{Fault, Kind, ProjectName};

/// The variable that names a context.
const VARIABLE: &str = "VIV_CONTEXT";
/// The service of this machine.
const LOCAL: &str = "local";

#[derive(clap::Args, Debug)]
#[command(
    after_help = "All commands then go to the host that is used, but for those that work on files of this machine.\n\
                        One command: viv --context NAME …, or VIV_CONTEXT=NAME. Back to this machine: viv context use local"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Remember a host service, and with --project the one to work in: viv context add lab https://192.0.2.7:8443 --token-file ci.token
    /// --ca ca.pem
    Add(Add),
    /// Let all commands go to this one from now on; local: to this machine
    Use {
        /// Its name
        name: String,
    },
    /// List them
    Ls,
    /// Forget one
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(clap::Args, Debug)]
struct Add {
    /// What it is called here
    name: String,
    /// https://HOST:PORT
    url: String,
    /// The certificate of its authority: viv cert ca there
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Our token: viv token create there
    #[arg(long, value_name = "FILE", required_unless_present = "cert")]
    token_file: Option<PathBuf>,
    /// Our certificate, in place of a token: viv cert issue there
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "token_file")]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

/// All that are remembered. They hold secrets: the file is its owner's.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Contexts {
    used: Option<String>,
    contexts: BTreeMap<String, Remote>,
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    url: String,
    project: Option<&'a ProjectName>,
    used: bool,
}

fn file() -> Result<PathBuf, Fault> {
    Ok(Places::find()?.state.join("contexts.json"))
}

impl Contexts {
    fn read(path: &Path) -> Result<Contexts, Fault> {
        let broken = |why: &dyn std::fmt::Display| {
            let text = format!("cannot read {}: {why}", path.display());
            Fault::new(Kind::Error, text, "restore it, or move it away and add the contexts again")
        };
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| broken(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Contexts::default()),
            Err(error) => Err(broken(&error)),
        }
    }

    fn write(&self, path: &Path) -> Result<(), Fault> {
        let write = || -> std::io::Result<()> {
            let beside = path.with_extension("new");
            let mut options = fs::OpenOptions::new();
            let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&beside, path)
        };
        write().map_err(|error| {
            let text = format!("cannot write {}: {error}", path.display());
            Fault::new(Kind::Error, text, "see that the state directory is writable and its disk has space")
        })
    }

    fn get(&self, name: &str) -> Result<&Remote, Fault> {
        self.contexts.get(name).ok_or_else(|| {
            let text = format!("no context is called {name:?}");
            Fault::new(Kind::NotFound, text, "see what there is: viv context ls; add it: viv context add")
        })
    }
}

/// The host that a command is for: by the option, the variable, or what is used; nothing is this machine.
pub(crate) fn chosen(option: Option<&str>, places: &Places) -> Result<Option<Remote>, Fault> {
    let variable = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty());
    let named = option.map(str::to_string).or(variable);
    let contexts = Contexts::read(&places.state.join("contexts.json"))?;
    match named.or_else(|| contexts.used.clone()) {
        None => Ok(None),
        Some(name) if name == LOCAL => Ok(None),
        Some(name) => contexts.get(&name).cloned().map(Some),
    }
}

pub(crate) fn run(args: Args, whom: &Whom) -> Result<u8, Fault> {
    let path = file()?;
    let mut contexts = Contexts::read(&path)?;
    match args.verb {
        Verb::Add(add) => {
            let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if add.name == LOCAL || add.name.is_empty() || !add.name.bytes().all(letters) {
                let text = format!("no context can be called {:?}", add.name);
                return Err(Fault::new(
                    Kind::Usage,
                    text,
                    "use letters, digits, '.', '_' and '-'; local is this machine",
                ));
            }
            if contexts.contexts.contains_key(&add.name) {
                let text = format!("a context called {:?} exists already", add.name);
                return Err(Fault::new(Kind::Conflict, text, format!("viv context rm {} first", add.name)));
            }
            let (host, port) = Remote::place(&add.url)?;
            let token = add.token_file.as_deref().map(read).transpose()?.map(|text| text.trim().to_string());
            let certificate = match (&add.cert, &add.key) {
                (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
                _ => None,
            };
            let project = whom.project.clone();
            let remote = Remote { host, port, ca: read(&add.ca)?, project, token, certificate };
            remote.check()?;
            contexts.contexts.insert(add.name, remote);
            contexts.write(&path)?;
        }
        Verb::Use { name } => {
            if name != LOCAL {
                contexts.get(&name)?;
            }
            contexts.used = Some(name).filter(|name| name != LOCAL);
            contexts.write(&path)?;
        }
        Verb::Ls => list(&contexts, whom.json),
        Verb::Rm { name } => {
            contexts.get(&name)?;
            contexts.contexts.remove(&name);
            contexts.used = contexts.used.filter(|used| *used != name);
            contexts.write(&path)?;
        }
    }
    Ok(0)
}

fn list(contexts: &Contexts, json: bool) {
    let used = contexts.used.as_deref();
    let here = Shown { name: LOCAL, url: "unix".to_string(), project: None, used: used.is_none() };
    let others = contexts.contexts.iter().map(|(name, remote)| Shown {
        name,
        url: remote.url(),
        project: remote.project.as_ref(),
        used: used == Some(name),
    });
    let all: Vec<Shown<'_>> = std::iter::once(here).chain(others).collect();
    if json {
        return output::json(&all);
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|shown| {
            let used = if shown.used { "yes" } else { "" };
            let project = shown.project.map_or_else(|| "-".to_string(), ToString::to_string);
            vec![shown.name.to_string(), shown.url.clone(), project, used.to_string()]
        })
        .collect();
    output::table(&["NAME", "WHERE", "PROJECT", "USED"], &rows);
}

fn read(path: &Path) -> Result<String, Fault> {
    fs::read_to_string(path).map_err(|error| {
        let kind = Kind::of_file(&error);
        Fault::new(
            kind,
            format!("cannot read {}: {error}", path.display()),
            "name a file that is there, in PEM or with a token",
        )
    })
}
