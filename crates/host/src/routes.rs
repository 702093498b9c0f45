//! What each endpoint does. The match has no default: a line of the table without an arm does not compile.
use crate::access::Caller;
use crate::blocking::{self, defect};
use crate::events::{self, Wanted, telling};
use crate::http::{self, Body};
use crate::images;
use crate::lists::{self, WantedOperations, WantedVms};
use crate::metrics;
use crate::operations::{self, Report, Task, shown};
use crate::precondition;
use crate::projects::{self, Scope};
use crate::prune;
use crate::service::Service;
use crate::shares;
use crate::snapshots::new_id;
use crate::store;
use crate::streams;
use crate::tokens::sha256;
use crate::waiting;
use crate::warm::{self, Template, Warm};
use crate::watch;
use crate::websocket::{self, Stream};
use hyper::body::Bytes;
use hyper::{Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use viv_api::access::PassCreate;
use viv_api::contract;
use viv_api::endpoint::{self, Answer, Route};
use viv_api::event::What;
use viv_api::image::{Image, ImageTag, Pruned, REGISTRY_CONFIG};
use viv_api::info::{Info, KvmState, Service as ServiceInfo};
use viv_api::network::{NetworkConnect, NicAttach};
use viv_api::runner::Ask as RunnerAsk;
use viv_api::secgroup::{RuleAdd, SecGroupJoin};
use viv_api::snapshot::SnapshotOther;
use viv_api::vm::{ConsoleSize, VmCreate};
use viv_model::{Ask, Fault, Kind, ProjectName};
use viv_oci::Logins;

/// Lines of the audit log that are shown if nothing is said.
const AUDIT_USUAL: usize = 1000;
/// The contract: what `viv_api::openapi` makes of the table and the types.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");
/// Most characters of an `Idempotency-Key`.
const REPEAT_KEY_MAX: usize = 255;

/// What is asked for.
pub(crate) struct Asked {
    pub(crate) route: Route,
    pub(crate) arguments: Vec<String>,
    pub(crate) scope: Scope,
}

/// Answers one request, which [`crate::door`] has let in.
pub(crate) async fn answer(
    service: Arc<Service>,
    caller: &Caller,
    asked: Asked,
    request: Request<Bytes>,
) -> Result<Response<Body>, Fault> {
    let Asked { route, arguments, scope } = asked;
    let query = request.uri().query().unwrap_or_default().to_string();
    let mut arguments = arguments.into_iter();
    let mut name = arguments.next().unwrap_or_default();
    let flag = |flag: &str| endpoint::query_value(&query, flag).is_some_and(|value| value != "false");
    let network = endpoint::query_value(&query, "network");
    let vms = service.vms.clone();
    let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let expected = precondition::of(field("if-match"))?;
    let blocking = Blocking { expected };
    if is_of_vm(route) {
        // From here on it has its identity, whatever becomes of the name.
        name = vms.named(&scope.project, &name)?.id;
    }
    // A work of a VM that may last keeps the name by which it was asked for.
    let of = match route {
        Route::VmCommit | Route::VmExport => vms.named(&scope.project, &name).map(|record| record.id),
        _ => Ok(name.clone()),
    };
    of.map_or(Ok(()), |vm| vms.refuse_for_program(route, &vm))?;
    let bound = caller.project.clone();
    let report = match () {
        () if flag("detach") => Report::Detached,
        () if route.endpoint().answer == Answer::Lines || flag("lines") => Report::Lines,
        () => Report::Outcome,
    };
    let work = |task| operations::begin(service.clone(), task, report, bound.clone());
    let project = scope.project.clone();
    match route {
        Route::OpenApi => Ok(http::document(OPENAPI)),
        Route::Metrics => Ok(http::text(metrics::page(&service, scope.only()).await?.text(), metrics::MEDIA)),
        Route::Authority => blocking.run(move || service.access.authority()).await,
        Route::TokenList => Ok(http::json(&service.access.passes.list())),
        Route::TokenCreate => {
            let ask: PassCreate = body(&request)?;
            let create =
                move || projects::held(&service, ask.project.as_ref(), || service.access.create_token(&ask));
            blocking.run(create).await
        }
        Route::TicketCreate => Ok(http::json(&service.access.create_ticket(caller, &body(&request)?)?)),
        Route::TokenRemove => blocking.run(move || service.access.passes.remove(&name)).await,
        Route::CertificateIssue => {
            let ask: PassCreate = body(&request)?;
            let issue = move || {
                projects::held(&service, ask.project.as_ref(), || service.access.issue_certificate(&ask))
            };
            blocking.run(issue).await
        }
        Route::AuditList => {
            let last = endpoint::query_value(&query, "last").and_then(|last| last.parse().ok());
            blocking.run(move || service.access.audit.last(last.unwrap_or(AUDIT_USUAL))).await
        }
        Route::AuditVerify => blocking.run(move || service.access.audit.verify()).await,
        Route::Info => blocking.run(move || info(&service, scope.only())).await,
        Route::Events => {
            let wanted = Wanted::of(&query, field("last-event-id"), scope)?;
            Ok(http::pieces(events::stream(vms, wanted).await?, "text/event-stream"))
        }
        Route::LimitsGet => blocking.run(move || Ok(vms.limits(scope.only()))).await,
        Route::LimitsSet => {
            let limits = body(&request)?;
            blocking.run(move || vms.set_limits(scope.only(), limits)).await
        }
        Route::ProjectList => blocking.run(move || Ok(vms.projects(bound.as_ref()))).await,
        Route::ProjectGet => blocking.run(move || vms.project(&name, bound.as_ref())).await,
        Route::ProjectCreate => {
            let ask = body(&request)?;
            blocking.run(move || vms.create_project(&ask)).await
        }
        Route::ProjectRemove => blocking.run(move || projects::remove(&service, &name)).await,
        Route::VmList => {
            let wanted = WantedVms::of(&query, scope)?;
            if !flag("watch") {
                return lists::answer_vms(vms, wanted, &query).await;
            }
            let since = watch::since(endpoint::query_value(&query, "since"), field("last-event-id"))?;
            Ok(http::pieces(watch::stream(vms, wanted, since), "text/event-stream"))
        }
        Route::VmCreate => {
            let key = repeat_key(&request)?;
            let trial = flag("dry-run");
            let mut ask: VmCreate = body(&request)?;
            let project = match &ask.project {
                Some(said) => scope.enter(said.as_str(), |project| vms.has_project(project))?,
                None => project,
            };
            ask.project = Some(project.clone()).filter(|project| !project.is_default());
            let repeated = key.map(|key| repeated(&project, key, &ask));
            let warm = Warm::of(endpoint::query_value(&query, "warm").as_deref()).filter(|_| !trial);
            let template = match warm {
                Some(warm) => Template::of(&service, &project, &ask, warm).await?,
                None => None,
            };
            blocking
                .run(move || {
                    let (request, snapshots) = (repeated.clone(), &service.snapshots);
                    vms.once(repeated.as_ref(), || match (&template, &ask.image) {
                        (Some(template), _) => template.create(&service, &project, ask, request),
                        (_, Some(image)) if snapshots.is_template(&project, image) => match trial {
                            true => Err(not_of_template()),
                            false => snapshots.create_from(&project, image, &ask, request),
                        },
                        _ => vms.create(ask, request, trial),
                    })
                })
                .await
        }
        Route::VmGet => {
            let tag = vms.find(&name).map(|(record, _)| vms.store.revision_of(&record.id));
            let mut answer = blocking.run(move || vms.get(&name)).await?;
            http::tag(&mut answer, tag?);
            Ok(answer)
        }
        Route::VmRemove => {
            let force = flag("force");
            blocking.run(move || vms.remove(&name, force)).await
        }
        Route::VmUpdate => {
            let ask = body(&request)?;
            blocking.run(move || vms.update(&name, &ask)).await
        }
        Route::VmStart => {
            let ask = body(&request)?;
            blocking.run(move || vms.start(&name, &ask)).await
        }
        Route::VmPause => blocking.run(move || vms.step(&name, Ask::Pause)).await,
        Route::VmResume => blocking.run(move || vms.step(&name, Ask::Resume)).await,
        Route::VmDiskAttach => {
            let disk = body(&request)?;
            blocking.run(move || vms.attach_disk(&name, &disk)).await
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
            blocking.run(move || vms.detach_disk(&name, &disk)).await
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
            blocking.run(move || vms.attach_card(&name, ask)).await
        }
        Route::VmNicDetach => {
            let nic = arguments.next().unwrap_or_default();
            blocking.run(move || vms.detach_card(&name, &nic)).await
        }
        Route::VmDiskLimits => {
            let disk = arguments.next().unwrap_or_default();
            let limits = body(&request)?;
            blocking.run(move || vms.limit_disk(&name, &disk, limits)).await
        }
        Route::VmDiskSize => {
            let disk = arguments.next().unwrap_or_default();
            let size = body(&request)?;
            blocking.run(move || vms.resize_disk(&name, &disk, size)).await
        }
        Route::VmStop => {
            let ask: viv_api::vm::VmStop = body(&request)?;
            let (_, runner) = vms.find(&name)?;
            streams::ask_agent_to_power_off(runner);
            blocking.run(move || vms.stop(&name, &ask)).await
        }
        Route::VmMemory => {
            let ask = body(&request)?;
            blocking.run(move || vms.resize_memory(&name, &ask)).await
        }
        Route::VmKill => {
            let ask = body(&request)?;
            blocking.run(move || vms.kill(&name, &ask)).await
        }
        Route::VmWait => waiting::answer(vms, &name, &query).await.map(|vm| http::json(&vm)),
        Route::VmStats => blocking.run(move || vms.stats(&name)).await,
        Route::VmLogs => {
            let (_, runner) = vms.find(&name)?;
            Ok(http::pieces(streams::logs(runner, flag("follow")), "application/octet-stream"))
        }
        Route::VmConsole => {
            let (record, runner) = vms.find(&name)?;
            let there = streams::console(&record.name, &runner).await?;
            Ok(streams::switch(&service, request, there))
        }
        Route::VmConsoleSocket => {
            let (record, runner) = vms.find(&name)?;
            let there = streams::console(&record.name, &runner).await?;
            websocket::console(&service, request, Stream { there, name: record.name, runner })
        }
        Route::VmConsoleSize => {
            let size: ConsoleSize = body(&request)?;
            let (_, runner) = vms.find(&name)?;
            tokio::spawn(streams::tell_agent_size(runner.clone(), size));
            blocking.run(move || runner.ask(&RunnerAsk::ConsoleSize(size)).map(drop)).await
        }
        Route::VmAgent | Route::VmAgentSocket => {
            let (record, runner) = vms.find(&name)?;
            let seconds = |key| {
                let value = endpoint::query_value(&query, key).and_then(|value| value.parse().ok());
                Duration::from_secs(value.unwrap_or(0u64).min(contract::AGENT_WAIT_S_MAX))
            };
            let there = streams::agent(&record.name, &runner, seconds("wait"), seconds("boot")).await?;
            match route {
                Route::VmAgentSocket => {
                    websocket::exec(&service, request, Stream { there, name: record.name, runner })
                }
                _ => Ok(streams::switch(&service, request, there)),
            }
        }
        Route::VmConnect | Route::VmConnectSocket => {
            let port = arguments.next().unwrap_or_default();
            let number = port.parse::<u16>().ok().filter(|number| *number != 0).ok_or_else(|| {
                let text = format!("no TCP port is called {port:?}");
                Fault::new(Kind::Usage, text, "use a number from 1 to 65535")
            })?;
            let (record, runner) = vms.find(&name)?;
            let connect = move || vms.connect_to(&name, number);
            let there = blocking::blocking(connect).await?;
            let there = there.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(there));
            let there = there.map_err(|error| defect(&error.to_string()))?;
            match route {
                Route::VmConnectSocket => {
                    websocket::port(&service, request, Stream { there, name: record.name, runner })
                }
                _ => Ok(streams::switch(&service, request, there)),
            }
        }
        Route::SnapshotCreate => {
            let ask = body(&request)?;
            let (record, _) = vms.find(&name)?;
            precondition::with(expected, || precondition::check(&record.name, vms.store.revision_of(&name)))?;
            work(Task::SnapshotCreate { project, vm: (name, record.name), id: new_id()?, ask }).await
        }
        Route::SnapshotList => {
            let list = move || service.snapshots.list(|project| scope.shows(project));
            lists::answer(route, &query, list).await
        }
        Route::SnapshotGet => blocking.run(move || service.snapshots.get(&project, &name)).await,
        Route::SnapshotRemove => {
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::SnapshotRemoved,
                        Some(&project),
                        || service.snapshots.remove(&project, &name),
                        |it| it.name.clone(),
                    )
                })
                .await
        }
        Route::SnapshotVerify => work(Task::SnapshotVerify { project, snapshot: name }).await,
        Route::SnapshotDiff => {
            let ask: SnapshotOther = body(&request)?;
            blocking.run(move || service.snapshots.diff(&project, &name, &ask.other)).await
        }
        Route::SnapshotExport => {
            work(Task::SnapshotExport { project, snapshot: name, ask: body(&request)? }).await
        }
        Route::SnapshotImport => work(Task::SnapshotImport { project, ask: body(&request)? }).await,
        Route::VmRollback => {
            let ask = body(&request)?;
            blocking.run(move || service.snapshots.roll_back(&name, &ask)).await
        }
        Route::SnapshotRestore => {
            let ask = body(&request)?;
            let repeated = repeat_key(&request)?.map(|key| repeated(&project, key, &(&name, &ask)));
            let restore = move |request| service.snapshots.restore(&project, &name, &ask, request);
            blocking.run(move || vms.once(repeated.as_ref(), || restore(repeated.clone()))).await
        }
        Route::VmFork => {
            let ask = body(&request)?;
            let repeated = repeat_key(&request)?.map(|key| repeated(&project, key, &(&name, &ask)));
            blocking.run(move || service.snapshots.fork(&name, &ask, repeated)).await
        }
        Route::NetworkList => {
            let list = move || vms.networks(|project| scope.shows(project));
            lists::answer(route, &query, list).await
        }
        Route::NetworkCreate => {
            let ask = body(&request)?;
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::NetworkCreated,
                        Some(&project),
                        || projects::held(&service, Some(&project), || vms.create_network(&project, &ask)),
                        |it| it.spec.name.clone(),
                    )
                })
                .await
        }
        Route::NetworkGet => blocking.run(move || vms.network(&project, &name)).await,
        Route::NetworkRemove => {
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::NetworkRemoved,
                        Some(&project),
                        || vms.remove_network(&project, &name),
                        |it| it.spec.name.clone(),
                    )
                })
                .await
        }
        Route::NetworkConnect => {
            let ask: NetworkConnect = body(&request)?;
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::NetworkChanged,
                        Some(&project),
                        || vms.connect(&name, &vms.named(&project, &ask.vm)?.id),
                        |_| name.clone(),
                    )
                })
                .await
        }
        Route::NetworkDisconnect => {
            let vm = arguments.next().unwrap_or_default();
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::NetworkChanged,
                        Some(&project),
                        || vms.disconnect(&name, &vms.named(&project, &vm)?.id),
                        |_| name.clone(),
                    )
                })
                .await
        }
        Route::PortList => blocking.run(move || vms.ports(|project| scope.shows(project))).await,
        Route::PortGet => blocking.run(move || vms.port(&name, network.as_deref())).await,
        Route::PortLimits => {
            let ask = body(&request)?;
            blocking.run(move || vms.limit_port(&name, network.as_deref(), ask)).await
        }
        Route::PortRebind => blocking.run(move || vms.rebind(&name, network.as_deref())).await,
        Route::PortCapture => {
            let capture = move || vms.capture(&name, network.as_deref());
            let pieces = blocking::blocking(capture).await?;
            Ok(http::pieces(pieces, "application/x-pcapng"))
        }
        Route::SecGroupList => blocking.run(move || vms.secgroups(|project| scope.shows(project))).await,
        Route::SecGroupCreate => {
            let ask = body(&request)?;
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::SecgroupCreated,
                        Some(&project),
                        || projects::held(&service, Some(&project), || vms.create_secgroup(&project, ask)),
                        |it| it.name.clone(),
                    )
                })
                .await
        }
        Route::SecGroupGet => blocking.run(move || vms.secgroup(&project, &name)).await,
        Route::SecGroupRemove => {
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::SecgroupRemoved,
                        Some(&project),
                        || vms.remove_secgroup(&project, &name),
                        |_| name.clone(),
                    )
                })
                .await
        }
        Route::SecGroupRuleAdd => {
            let ask: RuleAdd = body(&request)?;
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::SecgroupChanged,
                        Some(&project),
                        || vms.add_rule(&project, &name, &ask.rule),
                        |_| name.clone(),
                    )
                })
                .await
        }
        Route::SecGroupRuleRemove => {
            let number = arguments.next().unwrap_or_default();
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::SecgroupChanged,
                        Some(&project),
                        || vms.remove_rule(&project, &name, &number),
                        |_| name.clone(),
                    )
                })
                .await
        }
        Route::SecGroupJoin => {
            let ask: SecGroupJoin = body(&request)?;
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::SecgroupChanged,
                        Some(&project),
                        || vms.join(&name, &vms.named(&project, &ask.vm)?.id, ask.network.as_deref()),
                        |_| name.clone(),
                    )
                })
                .await
        }
        Route::SecGroupLeave => {
            let vm = arguments.next().unwrap_or_default();
            blocking
                .run(move || {
                    telling(
                        &*vms.store,
                        What::SecgroupChanged,
                        Some(&project),
                        || vms.leave(&name, &vms.named(&project, &vm)?.id, network.as_deref()),
                        |_| name.clone(),
                    )
                })
                .await
        }
        Route::Explain => {
            let ask = body(&request)?;
            blocking.run(move || vms.explain(&project, &ask)).await
        }
        Route::ImageList => {
            let list = move || Ok(service.images.list()?.iter().map(shown).collect());
            lists::answer(route, &query, list).await
        }
        Route::ImageBuild => {
            work(Task::ImageBuild { image: name, ask: body(&request)?, logins: logins(&request)? }).await
        }
        Route::VmCommit => work(Task::VmCommit { project, vm: name, ask: body(&request)? }).await,
        Route::VmExport => work(Task::VmExport { project, vm: name, ask: body(&request)? }).await,
        Route::ImagePush => {
            work(Task::ImagePush { image: name, ask: body(&request)?, logins: logins(&request)? }).await
        }
        Route::ImageExport => work(Task::ImageExport { image: name, ask: body(&request)? }).await,
        Route::ImageImport => work(Task::ImageImport { ask: body(&request)? }).await,
        Route::ImageGet => blocking.run(move || Ok(shown(&service.images.get(&name)?))).await,
        Route::ImageDetails => blocking.run(move || service.images.details(&name, &shown)).await,
        Route::ImageVerify => blocking.run(move || service.images.verify(&name)).await,
        Route::ImageTag => {
            let ask: ImageTag = body(&request)?;
            blocking
                .run(move || {
                    let tag = || Ok(shown(&service.images.tag(&name, &ask.name)?));
                    telling(&*vms.store, What::ImageChanged, None, tag, |it| it.name.clone())
                })
                .await
        }
        Route::ImagePrune => {
            blocking.run(move || Ok(Pruned { bytes: service.images.prune(&images::Unwatched)? })).await
        }
        Route::VolumeList => blocking.run(move || vms.volumes(|project| scope.shows(project))).await,
        Route::VolumeCreate => {
            let ask = body(&request)?;
            blocking.run(move || vms.create_volume(&project, &ask)).await
        }
        Route::VolumeGet => blocking.run(move || vms.volume_of(&scope, &name)).await,
        Route::VolumeRemove => blocking.run(move || vms.remove_volume(&project, &name)).await,
        Route::Prune => {
            let ask = body(&request)?;
            blocking.run(move || prune::prune(&service, &ask)).await
        }
        Route::ImageRemove => {
            blocking
                .run(move || {
                    let remove = || {
                        let image = service.images.get(&name)?;
                        service.images.remove(&name)?;
                        warm::forget_image(&service, &image.name)?;
                        Ok(shown(&image))
                    };
                    telling(&*vms.store, What::ImageRemoved, None, remove, |it: &Image| it.name.clone())
                })
                .await
        }
        Route::OperationList => {
            let wanted = WantedOperations::of(&query, scope)?;
            lists::answer_operations(service, wanted, &query).await
        }
        Route::OperationGet => blocking.run(move || operations::get(&service, &scope, &name)).await,
        Route::OperationFollow => {
            let lines = blocking::blocking(move || operations::follow(&service, scope, &name)).await?;
            Ok(http::pieces(lines, operations::MEDIA))
        }
        Route::OperationCancel => blocking.run(move || operations::cancel(&service, &scope, &name)).await,
    }
}

/// Whether what it is asked of is one VM. What is made of a VM may be made of a snapshot, too, and finds it by itself.
fn is_of_vm(route: Route) -> bool {
    let first = route.endpoint().path.split('/').find(|segment| segment.starts_with('{'));
    first == Some("{vm}") && !matches!(route, Route::VmCommit | Route::VmExport)
}

/// What the sender of a request that may be repeated calls it.
fn repeat_key(request: &Request<Bytes>) -> Result<Option<String>, Fault> {
    let Some(key) = request.headers().get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > REPEAT_KEY_MAX {
        return Err(Fault::new(
            Kind::Usage,
            format!("an Idempotency-Key has 1 to {REPEAT_KEY_MAX} printable characters"),
            "use a random one for each new VM, for example a UUID",
        ));
    }
    Ok(Some(key.to_string()))
}

/// Who its sender is to registries, where it says so.
fn logins(request: &Request<Bytes>) -> Result<Logins, Fault> {
    match request.headers().get(REGISTRY_CONFIG) {
        None => Ok(Logins::default()),
        Some(value) => Logins::decode(value.to_str().unwrap_or_default()),
    }
}

/// In each project of its own: no header has a line feed in it.
fn repeated(project: &ProjectName, key: String, ask: &impl Serialize) -> store::Request {
    let key = if project.is_default() { key } else { format!("{project}\n{key}") };
    store::Request { key, digest: sha256(&serde_json::to_vec(ask).unwrap_or_default()) }
}

fn not_of_template() -> Fault {
    Fault::new(Kind::Usage, "a VM of a template cannot be tried", "leave out dry-run")
}

/// Runs what waits for files and processes beside the requests of others.
struct Blocking {
    /// What the request expects of the VM that it changes.
    expected: Option<u64>,
}

impl Blocking {
    async fn run<T: Serialize + Send + 'static>(
        &self,
        act: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<Response<Body>, Fault> {
        let expected = self.expected;
        // Long lists are written there too.
        let answer = move || precondition::with(expected, act).map(|value| http::json(&value));
        blocking::blocking(answer).await
    }
}

/// The request's JSON body; an empty one is the default.
fn body<T: DeserializeOwned + Default>(request: &Request<Bytes>) -> Result<T, Fault> {
    if request.body().is_empty() {
        return Ok(T::default());
    }
    understood(request.body()).map_err(|why| {
        Fault::new(
            Kind::Usage,
            format!("the request was not understood: {why}"),
            "see what it may say: GET /v1/openapi.json; or use the command of this version",
        )
    })
}

/// A JSON document without fields that nobody knows; why it is none.
pub(crate) fn understood<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    let mut unknown = None;
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = serde_ignored::deserialize(&mut reader, |path| {
        unknown.get_or_insert_with(|| path.to_string());
    });
    let value = read.and_then(|value| reader.end().map(|()| value));
    let value = value.map_err(|error| error.to_string())?;
    match unknown {
        Some(field) => Err(format!("unknown field `{field}`")),
        None => Ok(value),
    }
}

/// Of the host; its numbers of VMs may be a project's.
fn info(service: &Service, project: Option<&ProjectName>) -> Result<Info, Fault> {
    let kvm = crate::info::kvm(&service.places);
    let places = &service.places;
    Ok(Info {
        version: env!("CARGO_PKG_VERSION").to_string(),
        service: ServiceInfo {
            pid: std::process::id(),
            started_at: service.started_at,
            socket: places.socket(),
        },
        host: crate::info::host(&service.vms.control_groups),
        accel: if kvm.state == KvmState::Good { "kvm" } else { "soft" }.to_string(),
        kvm,
        places: viv_api::info::Places {
            state: places.state.clone(),
            data: places.data.clone(),
            runtime: places.runtime.clone(),
        },
        vms: service.vms.count(project)?,
        limits: service.vms.limits(project),
    })
}
