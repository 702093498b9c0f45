//! Directories of this host that guests may use: checked, given to VMs and taken from them, also while they run.
use crate::runners::Runner;
use crate::store::VmRecord;
use crate::streams;
use crate::vms::{Vms, absolute};
use rustix::fs::{Access, access};
use std::fs;
use std::io::ErrorKind;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use viv_api::agent::Request;
use viv_api::vm::Vm;
use viv_model::{Fault, Kind, ShareMount, ShareSpec, State};
use viv_share::server;

/// Refuses what cannot be shared, while the user still looks. The process that serves it says so again at each start.
pub(crate) fn check(share: &ShareSpec) -> Result<(), Fault> {
    let name = share.path.display();
    let refuse = |kind, message: String, fix: String| Err(Fault::new(kind, message, fix));
    match fs::metadata(&share.path) {
        Err(error) if error.kind() == ErrorKind::NotFound => refuse(
            Kind::NotFound,
            format!("cannot share {name}: it does not exist"),
            format!("make it: mkdir -p {name}"),
        ),
        Err(error) => refuse(
            Kind::Denied,
            format!("cannot share {name}: {error}"),
            "share a directory that this user may read".to_string(),
        ),
        Ok(found) if !found.is_dir() => refuse(
            Kind::Usage,
            format!("cannot share {name}: it is not a directory"),
            "share the directory that the file is in".to_string(),
        ),
        Ok(_) if access(&share.path, Access::READ_OK | Access::EXEC_OK).is_err() => refuse(
            Kind::Denied,
            format!("cannot share {name}: this user may not read it"),
            format!("let this user read it: chmod u+rx {name}"),
        ),
        Ok(_) if !share.read_only && access(&share.path, Access::WRITE_OK).is_err() => refuse(
            Kind::Denied,
            format!("cannot share {name} for writing: this user may not write to it"),
            format!("share it read-only: -v {name}:{}:ro", share.target),
        ),
        Ok(_) => Ok(()),
    }
}

/// Words for the command line of a guest with our agent.
pub(crate) fn boot_words(shares: &[ShareSpec]) -> String {
    let words = shares.iter().enumerate().map(|(index, share)| ShareMount::new(index, share).to_word());
    words.collect::<Vec<_>>().join(" ")
}

/// What is left to do when a VM has got a directory: its agent mounts it.
struct Arrived {
    runner: Runner,
    mount: ShareMount,
    /// The guest is one with our agent.
    has_agent: bool,
}

/// Gives a VM one more directory: at once if it runs, and whenever it starts. If its agent cannot mount it, it is taken away
/// again.
pub(crate) async fn attach(vms: Arc<Vms>, name: String, share: ShareSpec) -> Result<Vm, Fault> {
    let asked = share.clone();
    let (vm, arrived) = in_thread(&vms, move |vms| vms.attach_share(&name, asked)).await?;
    let Some(Arrived { runner, mount, has_agent }) = arrived else { return Ok(vm) };
    let (tag, target) = (mount.tag.clone(), mount.target.clone());
    let request = Request::Mount { tag: mount.tag, target: mount.target, read_only: mount.read_only };
    let answer = match has_agent {
        true => streams::ask_booting_agent(&vm.name, &runner, &request).await,
        // Whoever made the kernel mounts it, unless there is an agent.
        false => Ok(streams::ask_agent(&runner, &request).await.ok()),
    };
    let refused = match answer {
        Ok(answer) => answer.and_then(|answer| answer.error).map(|error| {
            let text = format!("the guest cannot mount {} on {target}: {error}", share.path.display());
            Fault::new(
                Kind::Error,
                text,
                format!("see what is there: viv exec {} -- ls -ld {target}", vm.name),
            )
        }),
        Err(fault) => Some(fault),
    };
    let Some(fault) = refused else { return Ok(vm) };
    let id = vm.id.clone();
    let undone = in_thread(&vms, move |vms| vms.detach_share(&id, &tag)).await;
    Err(match undone {
        Ok(_) => fault,
        Err(also) => Fault {
            message: format!("{}; nor can it be detached again: {}", fault.message, also.message),
            ..fault
        },
    })
}

/// Takes a directory, by its number from 0, from a VM; if it runs, when its guest has let it go.
pub(crate) async fn detach(vms: Arc<Vms>, name: String, number: String, force: bool) -> Result<Vm, Fault> {
    let (vm, share, runner) = vms.share_called(&name, &number)?;
    let tag = share.tag.clone().unwrap_or_default();
    let answer = streams::ask_agent(&runner, &Request::Unmount { tag: tag.clone(), force }).await;
    // One without an agent, or one that does not run, is not asked.
    if let Ok(answer) = answer
        && let Some(why) = answer.in_use.or(answer.error)
        && !force
    {
        let fix = format!(
            "end that first; or take the directory away from whoever uses it: viv detach --force {vm} -v {}",
            share.target
        );
        return Err(Fault::new(Kind::Conflict, format!("the directory is in use in the guest: {why}"), fix));
    }
    in_thread(&vms, move |vms| vms.detach_share(&name, &tag)).await
}

async fn in_thread<T: Send + 'static>(
    vms: &Arc<Vms>,
    act: impl FnOnce(&Vms) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let vms = vms.clone();
    tokio::task::spawn_blocking(move || act(&vms)).await.unwrap_or_else(|error| {
        let text = format!("the service broke off: {error}");
        Err(Fault::new(Kind::Error, text, "this is a defect of ours: please report it"))
    })
}

impl Vms {
    fn attach_share(&self, name: &str, share: ShareSpec) -> Result<(Vm, Option<Arrived>), Fault> {
        share.check()?;
        absolute(&share.path)?;
        check(&share)?;
        self.change(name, |mut record, runner| {
            let state = self.view(record.clone(), &runner).state;
            if state == State::Paused {
                let text = format!("VM {:?} is paused, and cannot mount anything", record.name);
                return Err(Fault::new(
                    Kind::Conflict,
                    text,
                    format!("let it go on: viv resume {}", record.name),
                ));
            }
            let shares = &mut record.machine.shares;
            ShareSpec::keep_tags(shares);
            let tag = share.tag.clone().unwrap_or_else(|| ShareSpec::free_tag(shares));
            let share = ShareSpec { tag: Some(tag), ..share };
            shares.push(share.clone());
            ShareSpec::check_all(shares)?;
            let mount = ShareMount::new(0, &share);
            let has_agent = record.image.is_some();
            if has_agent {
                record.machine.append = format!("{} {}", record.machine.append, mount.to_word());
            }
            if !state.is_live() {
                self.store.update(&record)?;
                return Ok((self.view(record, &runner), None));
            }
            let (control, child) = server::start(&share, Stdio::inherit())?;
            let served = share.clone();
            let watched = thread::Builder::new()
                .name("share-watch".into())
                .spawn(move || server::watch(child, &served));
            watched.map_err(|error| server::broken(&share, "watch", &error))?;
            runner.attach_share(&share, has_agent, control)?;
            self.store.update(&record)?;
            Ok((self.view(record, &runner), Some(Arrived { runner, mount, has_agent })))
        })
    }

    /// The directory that is called by its number, from 0, with its tag.
    fn share_called(&self, name: &str, number: &str) -> Result<(String, ShareSpec, Runner), Fault> {
        let (record, runner) = self.find(name)?;
        let VmRecord { name, mut machine, .. } = record;
        ShareSpec::keep_tags(&mut machine.shares);
        let count = machine.shares.len();
        let share = number.parse::<usize>().ok().and_then(|number| machine.shares.into_iter().nth(number));
        let missing = || {
            let text = format!("{name} has no directory {number:?}: it has {count}");
            Fault::new(Kind::NotFound, text, "count from 0; see them with: viv inspect")
        };
        let share = share.ok_or_else(missing)?;
        Ok((name, share, runner))
    }

    fn detach_share(&self, id: &str, tag: &str) -> Result<Vm, Fault> {
        self.change(id, |mut record, runner| {
            let shares = &mut record.machine.shares;
            ShareSpec::keep_tags(shares);
            let place = shares.iter().position(|share| share.tag.as_deref() == Some(tag));
            let gone = || {
                let text = format!("VM {:?} does not have the directory any more", record.name);
                Fault::new(Kind::NotFound, text, "see what it has with: viv inspect")
            };
            shares.remove(place.ok_or_else(gone)?);
            record.machine.append = ShareMount::taken_off(&record.machine.append, tag);
            if self.view(record.clone(), &runner).state.is_live() {
                runner.detach_share(tag)?;
            }
            self.store.update(&record)?;
            Ok(self.view(record, &runner))
        })
    }
}
