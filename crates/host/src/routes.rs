//! What each endpoint does. The match has no default: a line of the table without an arm does not compile.
use crate::builder::BuilderVm;
use crate::http::{self, Body};
use crate::images::{self, Additions, Images, Options, Recipe, Watcher};
use crate::metrics;
use crate::service::Service;
use crate::shares;
use crate::streams;
use crate::vms::absolute;
use crate::works::{self, Reporter, defect, work};
use hyper::body::Bytes;
use hyper::{Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};
use viv_api::access::PassCreate;
use viv_api::agent;
use viv_api::contract;
use viv_api::endpoint::{self, Route};
use viv_api::image::{
    DiskExport, Image, ImageBuild, ImageCommit, ImageExport, ImageImport, ImagePush, ImageTag, Pruned,
};
use viv_api::info::{Info, KvmState, Service as ServiceInfo};
use viv_api::network::{NetworkConnect, NicAttach};
use viv_api::runner::Ask as RunnerAsk;
use viv_api::secgroup::{RuleAdd, SecGroupJoin};
use viv_api::snapshot::SnapshotOther;
use viv_api::timestamp::Timestamp;
use viv_api::vm::{ConsoleSize, Vm, VmCreate};
use viv_model::{Ask, Fault, Kind};

/// Lines of the audit log that are shown if nothing is said.
const AUDIT_USUAL: usize = 1000;
/// The contract: what `viv_api::openapi` makes of the table and the types.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");

/// Answers one request, which [`crate::door`] has let in.
pub(crate) async fn answer(
    service: Arc<Service>,
    route: Route,
    arguments: Vec<String>,
    request: Request<Bytes>,
) -> Result<Response<Body>, Fault> {
    let query = request.uri().query().unwrap_or_default().to_string();
    let mut arguments = arguments.into_iter();
    let name = arguments.next().unwrap_or_default();
    let flag = |flag: &str| endpoint::query_value(&query, flag).is_some_and(|value| value != "false");
    let network = endpoint::query_value(&query, "network");
    let job = endpoint::query_value(&query, "job").unwrap_or_default();
    let vms = service.vms.clone();
    match route {
        Route::Metrics => Ok(http::text(metrics::page(&service).await?, metrics::MEDIA)),
        Route::Authority => blocking(move || service.access.authority()).await,
        Route::TokenList => Ok(http::json(&service.access.passes.list())),
        Route::TokenCreate => {
            let ask: PassCreate = body(&request)?;
            blocking(move || service.access.create_token(&ask)).await
        }
        Route::TokenRemove => blocking(move || service.access.passes.remove(&name)).await,
        Route::CertificateIssue => {
            let ask: PassCreate = body(&request)?;
            blocking(move || service.access.issue_certificate(&ask)).await
        }
        Route::AuditList => {
            let last = endpoint::query_value(&query, "last").and_then(|last| last.parse().ok());
            blocking(move || service.access.audit.last(last.unwrap_or(AUDIT_USUAL))).await
        }
        Route::AuditVerify => blocking(move || service.access.audit.verify()).await,
        Route::OpenApi => Ok(http::document(OPENAPI)),
        Route::Info => blocking(move || info(&service)).await,
        Route::VmList => blocking(move || vms.list()).await,
        Route::VmCreate => {
            let ask: VmCreate = body(&request)?;
            blocking(move || match &ask.image {
                Some(image) if service.snapshots.is_template(image) => {
                    service.snapshots.create_from(image, &ask)
                }
                _ => vms.create(ask),
            })
            .await
        }
        Route::VmGet => blocking(move || vms.get(&name)).await,
        Route::VmRemove => {
            let force = flag("force");
            blocking(move || vms.remove(&name, force)).await
        }
        Route::VmStart => {
            let ask = body(&request)?;
            blocking(move || vms.start(&name, &ask)).await
        }
        Route::VmPause => blocking(move || vms.step(&name, Ask::Pause)).await,
        Route::VmResume => blocking(move || vms.step(&name, Ask::Resume)).await,
        Route::VmDiskAttach => {
            let disk = body(&request)?;
            blocking(move || vms.attach_disk(&name, &disk)).await
        }
        Route::VmDiskDetach => {
            let disk = arguments.next().unwrap_or_default();
            if !flag("force") {
                let (serial, runner) = vms.disk_serial(&name, &disk)?;
                if let Some(used) = streams::disk_use(&runner, serial).await {
                    return Err(Fault::new(
                        Kind::Conflict,
                        format!("the disk is in use in the guest: {used}"),
                        format!(
                            "end that first: viv exec {name} -- umount …; or lose what is not written yet: --force"
                        ),
                    ));
                }
            }
            blocking(move || vms.detach_disk(&name, &disk)).await
        }
        Route::VmShareAttach => {
            let share = body(&request)?;
            shares::attach(vms, name, share).await.map(|vm| http::json(&vm))
        }
        Route::VmShareDetach => {
            let share = arguments.next().unwrap_or_default();
            shares::detach(vms, name, share, flag("force")).await.map(|vm| http::json(&vm))
        }
        Route::VmNicAttach => {
            let ask: NicAttach = body(&request)?;
            blocking(move || vms.attach_card(&name, ask)).await
        }
        Route::VmNicDetach => {
            let nic = arguments.next().unwrap_or_default();
            blocking(move || vms.detach_card(&name, &nic)).await
        }
        Route::VmDiskLimits => {
            let disk = arguments.next().unwrap_or_default();
            let limits = body(&request)?;
            blocking(move || vms.limit_disk(&name, &disk, limits)).await
        }
        Route::VmDiskSize => {
            let disk = arguments.next().unwrap_or_default();
            let size = body(&request)?;
            blocking(move || vms.resize_disk(&name, &disk, size)).await
        }
        Route::VmStop => {
            let ask: viv_api::vm::VmStop = body(&request)?;
            let (_, runner) = vms.find(&name)?;
            streams::ask_agent_to_power_off(runner);
            blocking(move || vms.stop(&name, &ask)).await
        }
        Route::VmMemory => {
            let ask = body(&request)?;
            blocking(move || vms.resize_memory(&name, &ask)).await
        }
        Route::VmKill => {
            let ask = body(&request)?;
            blocking(move || vms.kill(&name, &ask)).await
        }
        Route::VmWait => wait(&service, &name).await,
        Route::VmStats => blocking(move || vms.stats(&name)).await,
        Route::VmLogs => {
            let (_, runner) = vms.find(&name)?;
            Ok(http::pieces(streams::logs(runner, flag("follow")), "application/octet-stream"))
        }
        Route::VmConsole => {
            let (record, runner) = vms.find(&name)?;
            let there = streams::console(&record.name, &runner).await?;
            Ok(streams::switch(&service, request, there))
        }
        Route::VmConsoleSize => {
            let size: ConsoleSize = body(&request)?;
            let (_, runner) = vms.find(&name)?;
            let told = runner.clone();
            // The serial port knows no size: the agent sets its terminal's.
            tokio::spawn(async move {
                let request = agent::Request::ConsoleSize { rows: size.rows, cols: size.cols };
                let _ = streams::ask_agent(&told, &request).await;
            });
            blocking(move || runner.ask(&RunnerAsk::ConsoleSize(size)).map(drop)).await
        }
        Route::VmAgent => {
            let (record, runner) = vms.find(&name)?;
            let seconds = |key| {
                let value = endpoint::query_value(&query, key).and_then(|value| value.parse().ok());
                Duration::from_secs(value.unwrap_or(0u64).min(contract::AGENT_WAIT_S_MAX))
            };
            let there = streams::agent(&record.name, &runner, seconds("wait"), seconds("boot")).await?;
            Ok(streams::switch(&service, request, there))
        }
        Route::VmConnect => {
            let port = arguments.next().unwrap_or_default();
            let number = port.parse::<u16>().ok().filter(|number| *number != 0).ok_or_else(|| {
                let text = format!("no TCP port is called {port:?}");
                Fault::new(Kind::Usage, text, "use a number from 1 to 65535")
            })?;
            let connect = move || vms.connect_to(&name, number);
            let there = tokio::task::spawn_blocking(connect).await;
            let there = there.map_err(|error| defect(&error.to_string()))??;
            let there = there.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(there));
            let there = there.map_err(|error| defect(&error.to_string()))?;
            Ok(streams::switch(&service, request, there))
        }
        Route::SnapshotCreate => {
            let ask = body(&request)?;
            blocking(move || service.snapshots.create(&name, &ask)).await
        }
        Route::SnapshotList => blocking(move || service.snapshots.list()).await,
        Route::SnapshotGet => blocking(move || service.snapshots.get(&name)).await,
        Route::SnapshotRemove => blocking(move || service.snapshots.remove(&name)).await,
        Route::SnapshotVerify => blocking(move || service.snapshots.verify(&name)).await,
        Route::SnapshotDiff => {
            let ask: SnapshotOther = body(&request)?;
            blocking(move || service.snapshots.diff(&name, &ask.other)).await
        }
        Route::SnapshotExport => {
            let ask = body(&request)?;
            blocking(move || service.snapshots.export(&name, &ask)).await
        }
        Route::SnapshotImport => {
            let ask = body(&request)?;
            blocking(move || service.snapshots.import(&ask)).await
        }
        Route::VmRollback => {
            let ask = body(&request)?;
            blocking(move || service.snapshots.roll_back(&name, &ask)).await
        }
        Route::SnapshotRestore => {
            let ask = body(&request)?;
            blocking(move || service.snapshots.restore(&name, &ask)).await
        }
        Route::VmFork => {
            let ask = body(&request)?;
            blocking(move || service.snapshots.fork(&name, &ask)).await
        }
        Route::NetworkList => blocking(move || vms.networks()).await,
        Route::NetworkCreate => {
            let ask = body(&request)?;
            blocking(move || vms.create_network(&ask)).await
        }
        Route::NetworkGet => blocking(move || vms.network(&name)).await,
        Route::NetworkRemove => blocking(move || vms.remove_network(&name)).await,
        Route::NetworkConnect => {
            let ask: NetworkConnect = body(&request)?;
            blocking(move || vms.connect(&name, &ask.vm)).await
        }
        Route::NetworkDisconnect => {
            let vm = arguments.next().unwrap_or_default();
            blocking(move || vms.disconnect(&name, &vm)).await
        }
        Route::PortList => blocking(move || vms.ports()).await,
        Route::PortGet => blocking(move || vms.port(&name, network.as_deref())).await,
        Route::PortLimits => {
            let ask = body(&request)?;
            blocking(move || vms.limit_port(&name, network.as_deref(), ask)).await
        }
        Route::PortRebind => blocking(move || vms.rebind(&name, network.as_deref())).await,
        Route::PortCapture => {
            let capture = move || vms.capture(&name, network.as_deref());
            let pieces = tokio::task::spawn_blocking(capture).await;
            let pieces = pieces.map_err(|error| defect(&error.to_string()))??;
            Ok(http::pieces(pieces, "application/x-pcapng"))
        }
        Route::SecGroupList => blocking(move || vms.secgroups()).await,
        Route::SecGroupCreate => {
            let ask = body(&request)?;
            blocking(move || vms.create_secgroup(ask)).await
        }
        Route::SecGroupGet => blocking(move || vms.secgroup(&name)).await,
        Route::SecGroupRemove => blocking(move || vms.remove_secgroup(&name)).await,
        Route::SecGroupRuleAdd => {
            let ask: RuleAdd = body(&request)?;
            blocking(move || vms.add_rule(&name, &ask.rule)).await
        }
        Route::SecGroupRuleRemove => {
            let number = arguments.next().unwrap_or_default();
            blocking(move || vms.remove_rule(&name, &number)).await
        }
        Route::SecGroupJoin => {
            let ask: SecGroupJoin = body(&request)?;
            blocking(move || vms.join(&name, &ask.vm, ask.network.as_deref())).await
        }
        Route::SecGroupLeave => {
            let vm = arguments.next().unwrap_or_default();
            blocking(move || vms.leave(&name, &vm, network.as_deref())).await
        }
        Route::Explain => {
            let ask = body(&request)?;
            blocking(move || vms.explain(&ask)).await
        }
        Route::ImageList => {
            blocking(move || Ok(service.images.list()?.iter().map(shown).collect::<Vec<_>>())).await
        }
        Route::ImageBuild => {
            let ask = body(&request)?;
            Ok(work(service, job, move |service, reporter| {
                build_now(service, &name, &ask, reporter).map(|image| shown(&image))
            }))
        }
        Route::VmCommit => {
            let ask: ImageCommit = body(&request)?;
            Ok(work(service, job, move |service, reporter| {
                works::commit(service, &name, &ask, reporter, shown)
            }))
        }
        Route::VmExport => {
            let ask: DiskExport = body(&request)?;
            Ok(work(service, job, move |service, reporter| {
                works::export_disk(service, &name, &ask, reporter)
            }))
        }
        Route::ImagePush => {
            let ask: ImagePush = body(&request)?;
            Ok(work(service, job, move |service, reporter| service.images.push(&name, &ask, reporter)))
        }
        Route::ImageExport => {
            let ask: ImageExport = body(&request)?;
            absolute(&ask.path)?;
            Ok(work(service, job, move |service, reporter| service.images.export(&name, &ask, reporter)))
        }
        Route::ImageImport => {
            let ask: ImageImport = body(&request)?;
            absolute(&ask.path)?;
            Ok(work(service, job, move |service, reporter| service.images.import(&ask, reporter, &shown)))
        }
        Route::ImageGet => blocking(move || Ok(shown(&service.images.get(&name)?))).await,
        Route::ImageDetails => blocking(move || service.images.details(&name, &shown)).await,
        Route::ImageVerify => blocking(move || service.images.verify(&name)).await,
        Route::ImageTag => {
            let ask: ImageTag = body(&request)?;
            blocking(move || Ok(shown(&service.images.tag(&name, &ask.name)?))).await
        }
        Route::ImagePrune => {
            blocking(move || Ok(Pruned { bytes: service.images.prune(&images::Unwatched)? })).await
        }
        Route::ImageRemove => {
            blocking(move || {
                let image = service.images.get(&name)?;
                service.images.remove(&name)?;
                Ok(shown(&image))
            })
            .await
        }
        Route::JobCancel => {
            if let Some(cancelled) = service.jobs().get(&name) {
                cancelled.store(true, Ordering::Relaxed);
            }
            Ok(http::json(&()))
        }
    }
}

/// Runs what waits for files and processes beside the requests of others.
async fn blocking<T: Serialize + Send + 'static>(
    act: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<Response<Body>, Fault> {
    match tokio::task::spawn_blocking(act).await {
        Ok(outcome) => outcome.map(|value| http::json(&value)),
        Err(error) => Err(defect(&error.to_string())),
    }
}

/// The request's JSON body; an empty one is the default.
fn body<T: DeserializeOwned + Default>(request: &Request<Bytes>) -> Result<T, Fault> {
    let refused = |why: String| {
        Fault::new(
            Kind::Usage,
            format!("the request was not understood: {why}"),
            "see what it may say: GET /v1/openapi.json; or use the command of this version",
        )
    };
    if request.body().is_empty() {
        return Ok(T::default());
    }
    let mut unknown = None;
    let mut reader = serde_json::Deserializer::from_slice(request.body());
    let read = serde_ignored::deserialize(&mut reader, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    });
    let value = read.and_then(|value| reader.end().map(|()| value));
    let value = value.map_err(|error| refused(error.to_string()))?;
    match unknown {
        Some(field) => Err(refused(format!("unknown field `{field}`"))),
        None => Ok(value),
    }
}

fn info(service: &Service) -> Result<Info, Fault> {
    let kvm = crate::info::kvm(&service.places);
    let places = &service.places;
    Ok(Info {
        version: env!("CARGO_PKG_VERSION").to_string(),
        service: ServiceInfo {
            pid: std::process::id(),
            started_at: service.started_at,
            socket: places.socket(),
        },
        host: crate::info::host(),
        accel: if kvm.state == KvmState::Good { "kvm" } else { "soft" }.to_string(),
        kvm,
        places: viv_api::info::Places {
            state: places.state.clone(),
            data: places.data.clone(),
            runtime: places.runtime.clone(),
        },
        vms: service.vms.count()?,
    })
}

/// Answers when the VM does not run any more.
async fn wait(service: &Service, name: &str) -> Result<Response<Body>, Fault> {
    let (record, runner) = service.vms.find(name)?;
    let before = service.vms.get(&record.id)?;
    if let Some(process) = runner.process() {
        crate::service::ended(&process).await;
    }
    // A VM that is forgotten when it ends may be gone by now: its end is told from its files, then.
    let after =
        service.vms.get(&record.id).unwrap_or(Vm { pid: None, state: viv_model::State::Stopped, ..before });
    Ok(http::json(&after))
}

/// An image of the store as the API shows it.
fn shown(image: &images::Image) -> Image {
    let unix_s = image.created_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Image {
        name: image.name.clone(),
        digest: image.digest.clone(),
        size_bytes: image.size_bytes,
        created_at: Timestamp { unix_s },
        summary: image.summary.clone(),
        process: image.manifest.process().cloned(),
        cpus: image.manifest.usual.cpus,
        memory_mib: image.manifest.usual.memory_mib,
    }
}

fn options(ask: &ImageBuild) -> Result<Options, Fault> {
    Ok(Options::new(match &ask.agent {
        Some(agent) => agent.clone(),
        None => images::find_agent()?,
    }))
}

/// Gets an image of containers, and makes sure that there is a kernel for it.
fn pull_now(
    images: &Images,
    name: &str,
    ask: &ImageBuild,
    reporter: &Reporter,
) -> Result<images::Image, Fault> {
    images.ensure_default(&options(ask)?, reporter)?;
    if ask.if_missing {
        match images.get(name) {
            Err(fault) if fault.kind == Kind::NotFound => {}
            outcome => return outcome,
        }
    }
    let pulled = images.pull(name, ask.insecure, reporter)?;
    pulled.ok_or_else(|| Fault::new(Kind::Usage, format!("{name:?} names no image"), "see: viv pull --help"))
}

/// Refuses what only images of Debian's packages have.
fn no_additions(name: &str, ask: &ImageBuild, additions: &Additions) -> Result<(), Fault> {
    if !additions.is_any() && ask.tag.is_none() && ask.command.is_none() {
        return Ok(());
    }
    Err(match ask.size_mib {
        Some(_) => Fault::new(
            Kind::Usage,
            "an image with packages or commands has no disk whose size could be chosen",
            "leave out --size: each VM of it has a disk of its own",
        ),
        None => Fault::new(
            Kind::Usage,
            format!("packages and commands are not added to the image {name:?}"),
            "add them to a Debian: viv build debian --package NAME --run 'COMMAND' --tag NAME",
        ),
    })
}

fn build_now(
    service: &Service,
    name: &str,
    ask: &ImageBuild,
    reporter: &Reporter,
) -> Result<images::Image, Fault> {
    let images: &Images = &service.images;
    let additions = Additions {
        packages: ask.packages.clone(),
        run: ask.run.clone(),
        tag: ask.tag.clone(),
        command: ask.command.clone(),
        epoch: ask.source_date_epoch,
    };
    if name != Recipe::Debian.name() || ask.size_mib.is_some() && additions.is_any() {
        no_additions(name, ask, &additions)?;
    }
    if viv_oci::Reference::is_one(name) {
        return pull_now(images, name, ask, reporter);
    }
    let Some(recipe) = Recipe::ALL.into_iter().find(|recipe| recipe.name() == name) else {
        if ask.if_missing {
            return images.get(name);
        }
        let names: Vec<_> = Recipe::ALL.iter().map(|recipe| recipe.name()).collect();
        return Err(Fault::new(
            Kind::NotFound,
            format!("there is no recipe for an image called {name:?}"),
            format!("build one of these: {}", names.join(", ")),
        ));
    };
    if ask.if_missing && recipe != Recipe::DefaultGuest {
        match images.get(name) {
            Err(fault) if fault.kind == Kind::NotFound => {}
            outcome => return outcome,
        }
    }
    if ask.if_missing && recipe == Recipe::Kernel {
        // Nobody waits minutes for what cannot be run.
        return Err(Images::kernel_alone());
    }
    let mut options = options(ask)?;
    options.force = ask.force;
    options.disk_mib = ask.size_mib.unwrap_or(options.disk_mib);
    if ask.if_missing && recipe == Recipe::DefaultGuest {
        return images.ensure_default(&options, reporter);
    }
    let cancelled = || reporter.cancelled();
    let networks = &service.vms.networks;
    let vm = BuilderVm { places: &service.places, networks, cancelled: &cancelled };
    if additions.is_any() {
        return images.build_container(&additions, &options, &vm, reporter);
    }
    let image = images.build(recipe, &options, Some(&vm), reporter)?;
    if recipe == Recipe::Kernel {
        options.force = false;
        images.ensure_default(&options, reporter)?;
    }
    Ok(image)
}
