//! Requests to the host service and to a VM's process: paths, queries and JSON bodies.
#![no_main]
use viv_api::endpoint;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (line, body) = text.split_once('\n').unwrap_or((text, ""));
    let (method, path) = line.split_once(' ').unwrap_or(("GET", line));
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let _ = endpoint::find(method, path);
    for name in ["force", "follow", "wait", "job"] {
        let _ = endpoint::query_value(query, name);
    }
    let _ = serde_json::from_str::<viv_api::vm::VmCreate>(body);
    let _ = serde_json::from_str::<viv_api::vm::VmStop>(body);
    let _ = serde_json::from_str::<viv_api::image::ImageBuild>(body);
    let _ = serde_json::from_str::<viv_api::runner::Ask>(body);
    let _ = serde_json::from_str::<viv_api::runner::Reply>(body);
    if let Ok(spec) = serde_json::from_str::<viv_model::MachineSpec>(body) {
        let _ = spec.check();
    }
    let _ = body.parse::<viv_api::timestamp::Timestamp>();
});
