//! `viv token` and `viv cert`: who may use this host's service over the network.
use super::{Context, each_of};
use crate::{output, size};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use viv_api::access::{Authority, CertificateMade, Pass, PassCreate, PassKind, TokenMade};
use viv_api::client::Request;
use viv_api::contract::Role;
use viv_api::endpoint::Route;
use viv_model::{Fault, Kind, ProjectName};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "viewer looks; operator lets VMs come and go, saves them, and is in them (console, exec);\n\
                        admin does all: files of the host, images, networks, tokens, the audit log.\n\n\
                        viv serve --listen 192.0.2.7:8443\n\
                        viv token create ci --role operator --expires 30d > ci.token\n\
                        viv token create ci --role operator --project acme     sees nothing but that project\n\
                        viv cert ca > ca.pem\n\
                        viv context add lab https://192.0.2.7:8443 --token-file ci.token --ca ca.pem   elsewhere"
)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(clap::Subcommand, Debug)]
enum TokenVerb {
    /// Make a token, and print it this once
    Create(Create),
    /// List tokens and certificates
    Ls,
    /// Take tokens back, at once
    Rm(Names),
}

#[derive(clap::Args, Debug)]
struct Create {
    /// For whom
    name: String,
    /// What it lets him do: viewer, operator or admin
    #[arg(long)]
    role: Role,
    /// How long it lasts: 30d, 12h, 90m; a token without: until it is taken back; a certificate: a year
    #[arg(long, value_name = "TIME", value_parser = size::seconds)]
    expires: Option<u64>,
}

#[derive(clap::Args, Debug)]
struct Names {
    /// Whose
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(
    after_help = "A certificate is in place of a token: viv context add NAME URL --cert NAME.pem --key NAME.key --ca ca.pem"
)]
pub(crate) struct Cert {
    #[command(subcommand)]
    verb: CertVerb,
}

#[derive(clap::Subcommand, Debug)]
enum CertVerb {
    /// Issue a certificate for a client: NAME.pem and NAME.key
    Issue(Issue),
    /// Print the certificate of this host's authority, which clients have to trust
    Ca,
    /// List tokens and certificates
    Ls,
    /// Take certificates back, at once
    Rm(Names),
}

#[derive(clap::Args, Debug)]
struct Issue {
    #[command(flatten)]
    create: Create,
    /// The directory to write it into
    #[arg(short, long, value_name = "DIRECTORY", default_value = ".")]
    output: PathBuf,
}

impl Create {
    /// The project is the one that the command line names, and not one that happens to be set: who is bound cannot be freed.
    fn ask(&self, project: Option<ProjectName>) -> PassCreate {
        PassCreate { name: self.name.clone(), role: self.role, project, expires_s: self.expires }
    }
}

pub(crate) fn token(context: &Context, project: Option<ProjectName>, args: Token) -> Result<u8, Fault> {
    match args.verb {
        TokenVerb::Create(create) => {
            let request = Request::new(Route::TokenCreate, &[]).body(&create.ask(project));
            let made: TokenMade = context.client.json(request)?;
            match context.json {
                true => output::json(&made),
                false => output::print(&format!("{}\n", made.token)),
            }
            Ok(0)
        }
        TokenVerb::Ls => list(context),
        TokenVerb::Rm(names) => remove(context, &names.names),
    }
}

pub(crate) fn cert(context: &Context, project: Option<ProjectName>, args: Cert) -> Result<u8, Fault> {
    match args.verb {
        CertVerb::Issue(issue) => {
            let request = Request::new(Route::CertificateIssue, &[]).body(&issue.create.ask(project));
            let made: CertificateMade = context.client.json(request)?;
            if context.json {
                output::json(&made);
                return Ok(0);
            }
            for (end, text) in [("pem", &made.certificate), ("key", &made.key)] {
                let path = issue.output.join(format!("{}.{end}", made.pass.name));
                if let Err(fault) = write_new(&path, text) {
                    // What nobody has is no use to anybody.
                    let _ = context.client.json::<Pass>(Request::new(Route::TokenRemove, &[&made.pass.name]));
                    return Err(fault);
                }
                output::print(&format!("{}\n", path.display()));
            }
            Ok(0)
        }
        CertVerb::Ca => {
            let authority: Authority = context.client.json(Request::new(Route::Authority, &[]))?;
            match context.json {
                true => output::json(&authority),
                false => output::print(&authority.ca),
            }
            Ok(0)
        }
        CertVerb::Ls => list(context),
        CertVerb::Rm(names) => remove(context, &names.names),
    }
}

fn write_new(path: &Path, text: &str) -> Result<(), Fault> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| {
        let text = format!("cannot write {}: {error}; the certificate was taken back", path.display());
        Fault::new(Kind::Error, text, "name another directory: --output DIRECTORY")
    })
}

fn list(context: &Context) -> Result<u8, Fault> {
    let passes: Vec<Pass> = context.client.json(Request::new(Route::TokenList, &[]))?;
    if context.json {
        output::json(&passes);
        return Ok(0);
    }
    let rows = passes.iter().map(|pass| {
        let kind = if pass.kind == PassKind::Token { "token" } else { "certificate" };
        let until = pass.expires_at.map_or_else(|| "removed".to_string(), |end| end.to_string());
        let project = pass.project.as_ref().map_or_else(|| "all".to_string(), ToString::to_string);
        let (kind, role) = (kind.to_string(), pass.role.to_string());
        vec![pass.name.clone(), kind, role, project, pass.created_at.ago(), until]
    });
    output::table(&["NAME", "KIND", "ROLE", "PROJECT", "CREATED", "UNTIL"], &rows.collect::<Vec<_>>());
    Ok(0)
}

fn remove(context: &Context, names: &[String]) -> Result<u8, Fault> {
    let remove =
        |name: &str| context.client.json::<Pass>(Request::new(Route::TokenRemove, &[name])).map(Some);
    each_of(context, names, remove, |pass: &Pass| pass.name.clone())
}
