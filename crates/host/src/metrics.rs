//! `GET /metrics`: what the service and its VMs do, as Prometheus reads it (text format 0.0.4).
//!
//! The VMs are asked at the same time, each for at most [`VM_LIMIT`]: one that hangs has `viv_vm_up 0`, and is asked again when its
//! first question has come back.
use crate::page::Page;
use crate::service::Service;
use crate::store::VmRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use viv_api::endpoint::{Endpoint, TABLE};
use viv_api::stats::{ChainStats, VmStats};
use viv_model::{DISK_TIMES_NS, Fault, PACKET_BYTES, ProjectName, State};

/// The media type of the text format.
pub(crate) const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How long a VM may take to answer.
const VM_LIMIT: Duration = Duration::from_secs(2);
/// Upper bounds of the buckets of durations, seconds.
const BUCKETS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// Times of one endpoint's answers.
#[derive(Clone, Copy, Debug, Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum_s: f64,
}

impl Histogram {
    fn add(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took <= bound);
        }
        self.count += 1;
        self.sum_s += took;
    }
}

#[derive(Default)]
struct Counts {
    /// By method, path of the table, and status.
    requests: BTreeMap<(&'static str, &'static str, u16), u64>,
    durations: BTreeMap<(&'static str, &'static str), Histogram>,
    /// VMs that have not answered yet.
    asked: BTreeSet<String>,
}

/// What the service counts.
#[derive(Default)]
pub(crate) struct Metrics {
    counts: Mutex<Counts>,
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer. A path that there is not has no line of its own: whoever asks may not make lines without end.
    pub(crate) fn answered(&self, endpoint: Option<&'static Endpoint>, status: u16, took: Duration) {
        let (method, path) = endpoint.map_or(("", ""), |endpoint| (endpoint.method.name(), endpoint.path));
        let mut counts = self.counts();
        *counts.requests.entry((method, path, status)).or_default() += 1;
        counts.durations.entry((method, path)).or_default().add(took);
    }
}

/// What is known of one VM.
struct Seen {
    id: String,
    name: String,
    project: ProjectName,
    up: bool,
    state: Option<State>,
    stats: Option<VmStats>,
}

impl Seen {
    /// Which VM a line is of: names are a project's.
    fn labels(&self) -> [(&str, &str); 3] {
        [("id", &self.id), ("vm", &self.name), ("project", self.project.as_str())]
    }

    /// The same, and which part of it.
    fn part<'a>(&'a self, label: &'a str, which: &'a str) -> [(&'a str, &'a str); 4] {
        let [id, vm, project] = self.labels();
        [id, vm, project, (label, which)]
    }
}

/// Asks every VM, or those of a project, for a bounded time.
async fn look(service: &Arc<Service>, project: Option<&ProjectName>) -> Result<Vec<Seen>, Fault> {
    let mut asked = Vec::new();
    let is_asked = |record: &VmRecord| project.is_none_or(|project| record.project == *project);
    for record in service.vms.records()?.into_iter().filter(is_asked) {
        let answer = service.metrics.counts().asked.insert(record.id.clone()).then(|| {
            let (service, id) = (service.clone(), record.id.clone());
            tokio::task::spawn_blocking(move || {
                let vm = service.vms.get(&id);
                let live = vm.as_ref().is_ok_and(|vm| vm.state.is_live());
                let stats = if live { service.vms.stats(&id).ok() } else { None };
                service.metrics.counts().asked.remove(&id);
                vm.ok().map(|vm| (vm.state, !live || stats.is_some(), stats))
            })
        });
        asked.push((record, answer));
    }
    let until = tokio::time::Instant::now() + VM_LIMIT;
    let mut seen = Vec::new();
    for (record, answer) in asked {
        let answer = match answer {
            Some(answer) => tokio::time::timeout_at(until, answer).await.ok().and_then(Result::ok),
            None => None,
        };
        let (state, up, stats) = match answer {
            Some(None) => continue, // it has just been forgotten
            Some(Some((state, up, stats))) => (Some(state), up, stats),
            None => (None, false, None),
        };
        let VmRecord { id, name, project, .. } = record;
        seen.push(Seen { id, name, project, up, state, stats });
    }
    Ok(seen)
}

/// The page; of a project it has only what is of its VMs.
pub(crate) async fn page(service: &Arc<Service>, project: Option<&ProjectName>) -> Result<Page, Fault> {
    let seen = look(service, project).await?;
    let mut page = Page::default();
    if project.is_none() {
        of_service(&mut page, service, &seen);
        of_requests(&mut page, &service.metrics.counts());
    }
    of_vms(&mut page, &seen);
    of_disks(&mut page, &seen);
    of_packets(&mut page, &seen);
    Ok(page)
}

fn of_service(page: &mut Page, service: &Service, seen: &[Seen]) {
    page.family("viv_build_info", "gauge", "The release of the service.");
    page.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let start = service.started_at.unix_s;
    page.one("process_start_time_seconds", "gauge", "When the service started, seconds since 1970.", start);
    if let Some((resident, cpu_s)) = own_process() {
        page.one("process_resident_memory_bytes", "gauge", "Memory that the service has in use.", resident);
        page.one("process_cpu_seconds_total", "counter", "Processor time of the service.", cpu_s);
    }
    page.family("viv_vms", "gauge", "VMs by their state; those that do not answer have none.");
    for state in State::ALL {
        let count = seen.iter().filter(|vm| vm.state == Some(state)).count();
        page.sample(&[("state", &state.to_string())], count);
    }
    let (waiting, running) = service.operations.counts();
    page.family("viv_operations", "gauge", "Long works that go on, or wait for others.");
    for (state, count) in [("waiting", waiting), ("running", running)] {
        page.sample(&[("state", state)], count);
    }
}

/// Resident memory in bytes and processor time in seconds (proc(5): `statm` field 2, `stat` fields 14 and 15).
fn own_process() -> Option<(u64, f64)> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()?.checked_add(fields.get(12)?.parse().ok()?)?;
    let cpu_s = ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64;
    Some((pages.saturating_mul(rustix::param::page_size() as u64), cpu_s))
}

/// What VMs' disks did, and how long it took.
fn of_disks(page: &mut Page, seen: &[Seen]) {
    let name = "viv_vm_disk_request_duration_seconds";
    page.family(
        name,
        "histogram",
        "Time of the guest's requests of a disk, without what its limits hold up.",
    );
    let disks = || {
        seen.iter().flat_map(|vm| {
            let disks = vm.stats.iter().flat_map(|stats| &stats.disks);
            disks.map(|disk| (disk, vm.part("disk", &disk.serial)))
        })
    };
    for (disk, [id, vm, project, serial]) in disks() {
        for (kind, requests) in disk.by_kind() {
            let labels = [id, vm, project, serial, ("operation", kind)];
            let upto = sums(DISK_TIMES_NS.map(|ns| ns as f64 / 1e9), &requests.times);
            page.histogram(&labels, upto, requests.count, requests.ns as f64 / 1e9);
        }
    }
    let name = "viv_vm_disk_bytes_total";
    page.family(name, "counter", "Bytes of the guest's requests of a disk.");
    for (disk, [id, vm, project, serial]) in disks() {
        for (kind, requests) in disk.by_kind().into_iter().filter(|(kind, _)| *kind != "flush") {
            page.sample(&[id, vm, project, serial, ("operation", kind)], requests.bytes);
        }
    }
    let name = "viv_vm_disk_errors_total";
    page.family(name, "counter", "Requests of a disk that failed.");
    for (disk, [id, vm, project, serial]) in disks() {
        for (kind, requests) in disk.by_kind() {
            page.sample(&[id, vm, project, serial, ("operation", kind)], requests.errors);
        }
    }
    let name = "viv_vm_disk_held_seconds_total";
    page.family(name, "counter", "Time that requests of a disk were held up by its limits.");
    for (disk, labels) in disks() {
        page.sample(&labels, disk.held_ns as f64 / 1e9);
    }
}

fn of_requests(page: &mut Page, counts: &Counts) {
    let name = "viv_http_requests_total";
    page.family(name, "counter", "Answers by endpoint and status; without a path: no endpoint has it.");
    for ((method, path, status), count) in &counts.requests {
        page.sample(&[("method", method), ("path", path), ("status", &status.to_string())], count);
    }
    let name = "viv_http_request_duration_seconds";
    page.family(name, "histogram", "Time from a request's head to its answer's.");
    for ((method, path), histogram) in &counts.durations {
        let labels = [("method", *method), ("path", *path)];
        let upto = BUCKETS.iter().map(f64::to_string).zip(histogram.buckets);
        page.histogram(&labels, upto, histogram.count, histogram.sum_s);
    }
    page.one("viv_http_endpoints", "gauge", "Endpoints that there are.", TABLE.len());
}

/// A number of each VM that has it.
type Number = fn(&VmStats) -> Option<f64>;

/// Name, kind, help, and where the number is.
const NUMBERS: &[(&str, &str, &str, Number)] = &[
    ("viv_vm_uptime_seconds", "gauge", "Guest time since its boot, without pauses.", |vm| s(vm.uptime_ns)),
    ("viv_vm_cpu_seconds_total", "counter", "The host's processor time of its process.", |vm| s(vm.cpu_ns)),
    ("viv_vm_resident_memory_bytes", "gauge", "The host's memory that it has in use.", |vm| {
        n(vm.memory_bytes)
    }),
    ("viv_vm_guest_memory_bytes", "gauge", "Memory that the guest's kernel manages.", |vm| {
        n(vm.guest_memory?.total)
    }),
    ("viv_vm_guest_memory_available_bytes", "gauge", "What programs in the guest could get.", |vm| {
        n(vm.guest_memory?.available)
    }),
    (
        "viv_vm_instructions_total",
        "counter",
        "Guest instructions of the software CPU, where it counts.",
        |vm| n(vm.soft.as_ref()?.instructions?),
    ),
    ("viv_vm_interpreted_instructions_total", "counter", "Of these, by the interpreter.", |vm| {
        n(vm.soft.as_ref()?.interpreted)
    }),
    ("viv_vm_interrupts_total", "counter", "Interrupts that the guest got.", |vm| {
        n(vm.soft.as_ref()?.interrupts)
    }),
    ("viv_vm_exceptions_total", "counter", "Exceptions and faults that the guest got.", |vm| {
        n(vm.soft.as_ref()?.exceptions)
    }),
    ("viv_vm_network_refused_packets_total", "counter", "Packets that could not be its own.", |vm| {
        n(vm.network?.refused)
    }),
    (
        "viv_vm_network_denied_packets_total",
        "counter",
        "Packets that security groups did not let pass.",
        |vm| n(vm.network?.denied),
    ),
    (
        "viv_vm_network_lost_packets_total",
        "counter",
        "Packets over its limits, or for which there was no room.",
        |vm| n(vm.network?.lost),
    ),
    ("viv_vm_program_steps_total", "counter", "Fuel or gas that a program has used.", |vm| {
        n(vm.program.as_ref()?.steps?)
    }),
    ("viv_vm_program_memory_bytes", "gauge", "Memory that a program has in its machine.", |vm| {
        n(vm.program.as_ref()?.memory_bytes)
    }),
    ("viv_vm_chain_height", "gauge", "A chain's newest block.", |vm| n(chain(vm)?.height)),
    ("viv_vm_chain_blocks_total", "counter", "Blocks that a chain has made.", |vm| n(chain(vm)?.blocks)),
    ("viv_vm_chain_transactions_total", "counter", "Transactions in them.", |vm| n(chain(vm)?.transactions)),
    ("viv_vm_chain_calls_total", "counter", "Methods of a chain that were called.", |vm| n(chain(vm)?.calls)),
];

fn chain(vm: &VmStats) -> Option<ChainStats> {
    vm.program.as_ref()?.chain
}

fn s(ns: u64) -> Option<f64> {
    Some(ns as f64 / 1e9)
}

fn n(count: u64) -> Option<f64> {
    Some(count as f64)
}

fn of_vms(page: &mut Page, seen: &[Seen]) {
    page.family("viv_vm_up", "gauge", "Whether it answers, or need not as it does not run.");
    for vm in seen {
        page.sample(&vm.labels(), u8::from(vm.up));
    }
    for (name, kind, help, number) in NUMBERS {
        page.family(name, kind, help);
        for vm in seen {
            if let Some(value) = vm.stats.as_ref().and_then(number) {
                page.sample(&vm.labels(), value);
            }
        }
    }
    let mut each = |name: &str, help: &str, label: &str, numbers: &dyn Fn(&VmStats) -> Vec<(String, f64)>| {
        page.family(name, "counter", help);
        for vm in seen {
            for (which, value) in vm.stats.as_ref().map(numbers).unwrap_or_default() {
                page.sample(&vm.part(label, &which), value);
            }
        }
    };
    each("viv_vm_vcpu_seconds_total", "Processor time of each vCPU.", "vcpu", &|vm| {
        vm.vcpu_ns.iter().enumerate().map(|(index, ns)| (index.to_string(), *ns as f64 / 1e9)).collect()
    });
    each("viv_vm_exits_total", "Why the guest's code was left, by reason.", "reason", &|vm| {
        let Some(soft) = &vm.soft else { return Vec::new() };
        let mut exits =
            vec![("port", soft.ports), ("device-memory", soft.device_memory), ("halt", soft.halts)];
        exits.extend(soft.translator.iter().flat_map(|translator| translator.exits.by_reason()));
        exits.into_iter().map(|(reason, count)| (reason.to_string(), count as f64)).collect()
    });
    let traffic = |vm: &VmStats, bytes: bool| {
        let number = |traffic: viv_model::Traffic| if bytes { traffic.bytes } else { traffic.packets } as f64;
        vm.network.map_or_else(Vec::new, |port| {
            vec![("sent".to_string(), number(port.sent)), ("received".to_string(), number(port.received))]
        })
    };
    each("viv_vm_network_bytes_total", "Bytes that passed its port, as it sees them.", "direction", &|vm| {
        traffic(vm, true)
    });
    each("viv_vm_network_packets_total", "Packets that passed its port.", "direction", &|vm| {
        traffic(vm, false)
    });
}

/// The sizes of packets, of cards whose packets pass a switch: the host's kernel tells of no sizes.
fn of_packets(page: &mut Page, seen: &[Seen]) {
    let name = "viv_vm_network_packet_bytes";
    page.family(name, "histogram", "Bytes of the frames of packets that passed its port.");
    for vm in seen {
        let Some(port) = vm.stats.as_ref().and_then(|stats| stats.network) else { continue };
        for (direction, traffic) in [("sent", port.sent), ("received", port.received)] {
            if traffic.packets == 0 || traffic.sizes.iter().any(|count| *count > 0) {
                let labels = vm.part("direction", direction);
                let upto = sums(PACKET_BYTES, &traffic.sizes);
                page.histogram(&labels, upto, traffic.packets, traffic.bytes);
            }
        }
    }
}

/// How many there are up to each bound, of how many there are between one and the next.
fn sums<B: Display>(
    bounds: impl IntoIterator<Item = B>,
    counts: &[u64],
) -> impl Iterator<Item = (String, u64)> {
    let sums = counts.iter().scan(0u64, |sum, count| {
        *sum = sum.saturating_add(*count);
        Some(*sum)
    });
    bounds.into_iter().map(|bound| bound.to_string()).zip(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_api::stats::{DiskRequests, DiskStats};

    #[test]
    fn buckets_hold_all_that_is_not_above_them() {
        let mut histogram = Histogram::default();
        for ms in [1, 3, 70, 60_000] {
            histogram.add(Duration::from_millis(ms));
        }
        assert_eq!(histogram.buckets, [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]);
        assert_eq!(histogram.count, 4);
        assert!(histogram.sum_s > 60.07 && histogram.sum_s < 60.08);
    }

    fn seen(stats: Option<VmStats>) -> Seen {
        let (id, name, project) = ("1".into(), "web".into(), "shop".parse().unwrap());
        Seen { id, name, project, up: true, state: Some(State::Running), stats }
    }

    #[test]
    fn a_disk_has_a_histogram_for_each_kind_of_request() {
        let mut times = vec![0; DISK_TIMES_NS.len() + 1];
        (times[1], times[DISK_TIMES_NS.len()]) = (3, 1);
        let reads = DiskRequests { count: 4, bytes: 512, errors: 1, ns: 4_500_000_000, times };
        let disk = DiskStats { serial: "data".into(), reads, held_ns: 500_000_000, ..DiskStats::default() };
        let stats = Some(VmStats { disks: vec![disk], ..VmStats::default() });
        let seen = seen(stats);
        let mut page = Page::default();
        of_disks(&mut page, &[seen]);
        let of = "{id=\"1\",vm=\"web\",project=\"shop\",disk=\"data\",operation=\"read\"";
        for line in [
            format!("viv_vm_disk_request_duration_seconds_bucket{of},le=\"0.00001\"}} 0\n"),
            format!("viv_vm_disk_request_duration_seconds_bucket{of},le=\"3\"}} 3\n"),
            format!("viv_vm_disk_request_duration_seconds_bucket{of},le=\"+Inf\"}} 4\n"),
            format!("viv_vm_disk_request_duration_seconds_sum{of}}} 4.5\n"),
            format!("viv_vm_disk_bytes_total{of}}} 512\n"),
            format!("viv_vm_disk_errors_total{of}}} 1\n"),
        ] {
            assert!(page.text().contains(&line), "{line} is not in\n{}", page.text());
        }
        assert!(page.text().contains(
            "viv_vm_disk_held_seconds_total{id=\"1\",vm=\"web\",project=\"shop\",disk=\"data\"} 0.5\n"
        ));
    }

    #[test]
    fn packets_have_a_histogram_for_each_direction() {
        let mut port = viv_api::port::PortTraffic::default();
        [60, 64, 65, 1514, 60_000].iter().for_each(|bytes| port.sent.add(*bytes));
        // As the kernel counts them.
        (port.received.packets, port.received.bytes) = (7, 700);
        let stats = Some(VmStats { network: Some(port), ..VmStats::default() });
        let seen = seen(stats);
        let mut page = Page::default();
        of_packets(&mut page, &[seen]);
        let of = "{id=\"1\",vm=\"web\",project=\"shop\",direction=\"sent\"";
        for (bound, count) in [("64", 2), ("256", 3), ("1024", 3), ("1514", 4), ("32768", 4), ("+Inf", 5)] {
            let line = format!("viv_vm_network_packet_bytes_bucket{of},le=\"{bound}\"}} {count}\n");
            assert!(page.text().contains(&line), "{line} is not in\n{}", page.text());
        }
        assert!(page.text().contains(&format!("viv_vm_network_packet_bytes_sum{of}}} 61703\n")));
        assert!(!page.text().contains("received"), "{}", page.text());
    }

    #[test]
    fn names_keep_to_the_rules() {
        let mut names = BTreeSet::new();
        for (name, kind, help, _) in NUMBERS {
            assert!(names.insert(name), "{name} is there twice");
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(help.ends_with('.') && !help.contains('\n'));
        }
        let metrics = Metrics::default();
        metrics.answered(None, 404, Duration::ZERO);
        metrics.answered(TABLE.first(), 200, Duration::ZERO);
        let mut page = Page::default();
        of_requests(&mut page, &metrics.counts());
        assert!(
            page.text().contains("viv_http_requests_total{method=\"\",path=\"\",status=\"404\"} 1"),
            "{}",
            page.text()
        );
        assert!(page.text().contains("le=\"+Inf\"} 1"));
    }
}
