//! The contract as an OpenAPI 3.1 document: from the table of endpoints and the wire types, and nothing else.
//! `docs/openapi.json` is what this gives (a test compares them), and what the service serves.
use crate::access::*;
use crate::client::ErrorBody;
use crate::contract::{AGENT_WAIT_S_MAX, Shape, TEXT_MAX, WAIT_S_MAX};
use crate::endpoint::{Answer, Endpoint, Route, TABLE, UPGRADE};
use crate::event::Event;
use crate::image::*;
use crate::info::Info;
use crate::limits::HostLimits;
use crate::network::*;
use crate::operation::{Operation, WorkLine};
use crate::port::Port;
use crate::project::{Project, ProjectCreate};
use crate::prune::{HostPrune, HostPruned};
use crate::secgroup::*;
use crate::snapshot::*;
use crate::stats::VmStats;
use crate::vm::*;
use crate::volume::*;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use viv_model::{DiskLimits, DiskSpec, Limits, NicLimits, ShareSpec};

/// What goes over the wire at an endpoint, as schemas.
#[derive(Default)]
struct Types {
    ask: Option<Schema>,
    /// Of the JSON document, or of each JSON line.
    answer: Option<Schema>,
    /// Of each JSON line in the place of the document, where that can be chosen.
    line: Option<Schema>,
}

/// Schemas of what is sent and of what is shown: where a field may be left out by a sender, it is always shown.
struct Generators {
    asks: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Generators {
    fn new() -> Generators {
        let settings = || SchemaSettings::draft2020_12().with(|settings| settings.meta_schema = None);
        Generators {
            asks: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }

    fn of<A: JsonSchema, B: JsonSchema>(&mut self) -> Types {
        Types { ask: Some(self.asks.subschema_for::<A>()), ..self.shown::<B>() }
    }

    fn shown<B: JsonSchema>(&mut self) -> Types {
        Types { answer: Some(self.answers.subschema_for::<B>()), ..Types::default() }
    }

    fn with_lines<B: JsonSchema>(&mut self, types: Types) -> Types {
        Types { line: Some(self.answers.subschema_for::<WorkLine<B>>()), ..types }
    }

    /// The types of an endpoint. No default: an endpoint without them does not compile.
    fn types(&mut self, route: Route) -> Types {
        use Route::*;
        match route {
            Info => self.shown::<self::Info>(),
            OpenApi => Types { answer: Some(schemars::json_schema!({"type": "object"})), ..Types::default() },
            Events => self.shown::<Event>(),
            LimitsGet => self.shown::<HostLimits>(),
            LimitsSet => self.of::<Limits, HostLimits>(),
            Authority => self.shown::<self::Authority>(),
            TokenList => self.shown::<Vec<Pass>>(),
            TokenCreate => self.of::<PassCreate, TokenMade>(),
            TokenRemove => self.shown::<Pass>(),
            TicketCreate => self.of::<self::TicketCreate, Ticket>(),
            CertificateIssue => self.of::<PassCreate, CertificateMade>(),
            ProjectList => self.shown::<Vec<Project>>(),
            ProjectCreate => self.of::<self::ProjectCreate, Project>(),
            ProjectGet | ProjectRemove => self.shown::<Project>(),
            AuditList => self.shown::<Vec<AuditEntry>>(),
            AuditVerify => self.shown::<AuditVerified>(),
            VmList => self.shown::<Vec<Vm>>(),
            VmCreate => self.of::<self::VmCreate, Vm>(),
            VmUpdate => self.of::<self::VmUpdate, Vm>(),
            VmStart => self.of::<self::VmStart, Vm>(),
            VmDiskAttach => self.of::<DiskSpec, Vm>(),
            VmShareAttach => self.of::<ShareSpec, Vm>(),
            VmNicAttach => self.of::<NicAttach, Vm>(),
            VmDiskLimits => self.of::<DiskLimits, Vm>(),
            VmDiskSize => self.of::<DiskSize, Vm>(),
            VmStop => self.of::<self::VmStop, Vm>(),
            VmMemory => self.of::<self::VmMemory, Vm>(),
            VmKill => self.of::<self::VmKill, Vm>(),
            VmGet | VmRemove | VmPause | VmResume | VmDiskDetach | VmShareDetach | VmNicDetach | VmWait
            | NetworkDisconnect | SecGroupLeave => self.shown::<Vm>(),
            VmStats => self.shown::<self::VmStats>(),
            Metrics | VmLogs | PortCapture | VmConsole | VmConsoleSocket | VmAgent | VmAgentSocket
            | VmConnect | VmConnectSocket => Types::default(),
            VmConsoleSize => self.of::<ConsoleSize, ()>(),
            NetworkList => self.shown::<Vec<Network>>(),
            NetworkCreate => self.of::<self::NetworkCreate, Network>(),
            NetworkGet | NetworkRemove => self.shown::<Network>(),
            NetworkConnect => self.of::<self::NetworkConnect, Vm>(),
            PortList => self.shown::<Vec<Port>>(),
            PortGet | PortRebind => self.shown::<Port>(),
            PortLimits => self.of::<NicLimits, Port>(),
            SecGroupList => self.shown::<Vec<SecGroupInfo>>(),
            SecGroupCreate => self.of::<self::SecGroupCreate, SecGroupInfo>(),
            SecGroupGet | SecGroupRemove | SecGroupRuleRemove => self.shown::<SecGroupInfo>(),
            SecGroupRuleAdd => self.of::<RuleAdd, SecGroupInfo>(),
            SecGroupJoin => self.of::<self::SecGroupJoin, Vm>(),
            Explain => self.of::<self::Explain, Explanation>(),
            ImageList => self.shown::<Vec<Image>>(),
            ImageBuild => self.of::<self::ImageBuild, BuildLine>(),
            ImageGet | ImageRemove => self.shown::<Image>(),
            ImageDetails => self.shown::<self::ImageDetails>(),
            ImageVerify => self.shown::<ImageVerified>(),
            ImageTag => self.of::<self::ImageTag, Image>(),
            ImagePrune => self.shown::<Pruned>(),
            VolumeList => self.shown::<Vec<Volume>>(),
            VolumeCreate => self.of::<self::VolumeCreate, Volume>(),
            VolumeGet | VolumeRemove => self.shown::<Volume>(),
            Prune => self.of::<HostPrune, HostPruned>(),
            VmCommit => self.of::<ImageCommit, BuildLine>(),
            VmExport => self.of::<DiskExport, WorkLine<Exported>>(),
            ImagePush => self.of::<self::ImagePush, WorkLine<Pushed>>(),
            ImageExport => self.of::<self::ImageExport, WorkLine<Exported>>(),
            ImageImport => self.of::<self::ImageImport, WorkLine<Imported>>(),
            SnapshotCreate => {
                let types = self.of::<self::SnapshotCreate, Snapshot>();
                self.with_lines::<Snapshot>(types)
            }
            SnapshotVerify => {
                let types = self.shown::<Snapshot>();
                self.with_lines::<Snapshot>(types)
            }
            SnapshotList => self.shown::<Vec<Snapshot>>(),
            SnapshotGet | SnapshotRemove => self.shown::<Snapshot>(),
            SnapshotDiff => self.of::<SnapshotOther, self::SnapshotDiff>(),
            SnapshotExport | SnapshotImport => self.of::<SnapshotFile, WorkLine<Snapshot>>(),
            SnapshotRestore => self.of::<self::SnapshotRestore, Vm>(),
            VmRollback => self.of::<self::VmRollback, Vm>(),
            VmFork => self.of::<self::VmFork, Vec<Vm>>(),
            OperationList => self.shown::<Vec<Operation>>(),
            OperationGet | OperationCancel => self.shown::<Operation>(),
            OperationFollow => self.shown::<WorkLine<Value>>(),
        }
    }
}

/// The document.
pub fn document() -> Value {
    let mut generators = Generators::new();
    let mut paths = Map::new();
    for endpoint in TABLE {
        let types = generators.types(endpoint.route);
        let method = endpoint.method.name().to_ascii_lowercase();
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[method] = operation(endpoint, types);
    }
    let error = generators.answers.subschema_for::<ErrorBody>();
    let begun = generators.answers.subschema_for::<Operation>();
    let mut answers = Value::Object(generators.answers.take_definitions(true));
    let mut schemas = generators.asks.take_definitions(true);
    let mut paths = Value::Object(paths);
    let renamed = differing(&schemas, &answers);
    rename(&mut answers, &renamed);
    for (name, schema) in answers.as_object_mut().into_iter().flatten() {
        let name = if renamed.contains(name) { format!("{name}Shown") } else { name.clone() };
        schemas.insert(name, schema.take());
    }
    for operation in paths.as_object_mut().into_iter().flatten().flat_map(|(_, path)| path.as_object_mut()) {
        for (_, operation) in operation {
            rename(&mut operation["responses"], &renamed);
        }
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Vivarium",
            "summary": "The host service: virtual machines, images, networks and snapshots of one host",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": tags(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": shared(&error, &begun),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "viv token create NAME --role ROLE. On the Unix socket it is the user's own, without one.",
                },
                "certificate": {"type": "mutualTLS", "description": "viv cert issue NAME --role ROLE"},
            },
        },
        "security": [{}, {"token": []}, {"certificate": []}],
    });
    at_home(&mut document);
    document
}

/// Names of which the schema of what is sent is another one than that of what is shown.
fn differing(asks: &Map<String, Value>, answers: &Value) -> BTreeSet<String> {
    let mut renamed = BTreeSet::new();
    loop {
        let before = renamed.len();
        for (name, ask) in asks {
            let Some(answer) = answers.get(name) else { continue };
            let mut answer = answer.clone();
            rename(&mut answer, &renamed);
            if answer != *ask {
                renamed.insert(name.clone());
            }
        }
        if renamed.len() == before {
            return renamed;
        }
    }
}

/// Calls `each` with every value in this one.
fn walk(value: &mut Value, each: &mut dyn FnMut(&mut Value)) {
    each(value);
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| walk(value, each)),
        Value::Object(fields) => fields.iter_mut().for_each(|(_, value)| walk(value, each)),
        _ => {}
    }
}

fn rename(value: &mut Value, renamed: &BTreeSet<String>) {
    walk(value, &mut |value| {
        if let Some(Value::String(link)) = value.get_mut("$ref")
            && let Some(name) = link.strip_prefix("#/$defs/")
            && renamed.contains(name)
        {
            *link = format!("#/$defs/{name}Shown");
        }
    });
}

/// References lead to where OpenAPI has schemas.
fn at_home(document: &mut Value) {
    walk(document, &mut |value| {
        if let Some(Value::String(link)) = value.get_mut("$ref") {
            *link = link.replace("#/$defs/", "#/components/schemas/");
        }
    });
}

/// What the paths are about, by their first segment.
const TAGS: [(&str, &str); 20] = [
    ("events", "what happens"),
    ("limits", "how much VMs may have"),
    ("authority", "whom to trust"),
    ("tokens", "who may come over the network"),
    ("tickets", "WebSockets of pages"),
    ("certificates", "certificates of clients"),
    ("audit", "what was done, and by whom"),
    ("info", "the service and its host"),
    ("openapi.json", "this document"),
    ("projects", "what belongs together, and does not see the rest"),
    ("vms", "virtual machines"),
    ("networks", "networks that VMs share"),
    ("ports", "where VMs are plugged in"),
    ("secgroups", "which VMs and addresses may reach a VM"),
    ("explain", "what decides about a flow"),
    ("images", "what VMs are made from"),
    ("prune", "removing what nobody needs"),
    ("snapshots", "saved VMs"),
    ("operations", "long works"),
    ("service", "of the service itself"),
];

fn tags() -> Value {
    TAGS.iter().map(|(name, about)| json!({"name": name, "description": about})).collect()
}

fn tag(endpoint: &Endpoint) -> &'static str {
    let first = endpoint.path.strip_prefix("/v1/").unwrap_or("service").split('/').next().unwrap_or_default();
    TAGS.iter().find(|(name, _)| *name == first).map_or("service", |(name, _)| name)
}

fn operation(endpoint: &Endpoint, types: Types) -> Value {
    let Endpoint { route, path, answer, summary, .. } = endpoint;
    let mut parameters: Vec<Value> = path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(place)
        .collect();
    parameters.extend(route.parameters().iter().map(|known| {
        let schema = match known.shape {
            Shape::Flag => json!({"type": "boolean", "default": false}),
            Shape::Seconds => {
                json!({"type": "integer", "minimum": 0, "maximum": AGENT_WAIT_S_MAX, "default": 0})
            }
            Shape::Limit => json!({"type": "integer", "minimum": 0, "maximum": WAIT_S_MAX}),
            Shape::Part => json!({"type": "integer", "minimum": 1, "maximum": 100_000}),
            Shape::Count => json!({"type": "integer", "minimum": 1, "maximum": 100_000, "default": 1000}),
            Shape::OneOf(all) => json!({"type": "string", "enum": all}),
            Shape::Text => json!({"type": "string", "maxLength": TEXT_MAX}),
        };
        json!({"name": known.name, "in": "query", "description": known.does, "schema": schema})
    }));
    let (success, media) = match answer {
        Answer::Json => ("200", "application/json"),
        Answer::Lines => ("200", "application/x-ndjson"),
        Answer::Events => ("200", "text/event-stream"),
        Answer::Bytes => ("200", bytes_media(*route)),
        Answer::Stream | Answer::Socket => ("101", ""),
    };
    let described = match answer {
        Answer::Json => json!({"description": "done"}),
        Answer::Lines => {
            json!({"description": "one JSON document of this schema a line, as things happen; the last one is the outcome"})
        }
        Answer::Events => {
            json!({"description": "server-sent events; the data of each is a JSON document of this schema"})
        }
        Answer::Bytes => json!({"description": "bytes, as they happen"}),
        Answer::Stream => json!({
            "description": "from now on the connection carries bytes both ways; for a request with Connection: upgrade and Upgrade: as below",
            "headers": {"Upgrade": {"schema": {"const": UPGRADE}}, "Connection": {"schema": {"const": "upgrade"}}},
        }),
        Answer::Socket => json!({
            "description": format!("from now on the connection is a WebSocket (RFC 6455); for a request with its handshake. {}", spoken(*route)),
            "headers": {
                "Upgrade": {"schema": {"const": "websocket"}},
                "Connection": {"schema": {"const": "Upgrade"}},
                "Sec-WebSocket-Accept": {"schema": {"type": "string"}},
            },
        }),
    };
    let mut responses = json!({ (success): described });
    if !media.is_empty() {
        let schema = types.answer.unwrap_or_else(|| schemars::json_schema!({}));
        responses[success]["content"] = json!({ (media): {"schema": schema} });
    }
    if let Some(line) = types.line {
        responses[success]["content"]["application/x-ndjson"] = json!({ "schema": line });
    }
    if route.parameters().iter().any(|known| known.name == "watch") {
        let fields = json!({
            "data": {"type": "string", "contentMediaType": "application/json"},
            "event": {"type": "string", "enum": ["put", "delete", "listed", "gap"]},
            "id": {"type": "string"},
        });
        // Each event on its own, as OpenAPI 3.2 has it (`itemSchema`), which readers of 3.1 follow.
        let event = json!({"type": "object", "properties": fields, "required": ["data", "event"]});
        responses[success]["content"]["text/event-stream"] = json!({"schema": event});
    }
    for status in route.is_long_work().then_some("202").into_iter().chain(statuses(*route)) {
        responses[status] = json!({"$ref": format!("#/components/responses/{status}")});
    }
    let mut operation = json!({
        "operationId": format!("{route:?}"),
        "summary": summary,
        "tags": [tag(endpoint)],
        "x-role": route.role(),
        "x-reach": route.reach(),
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(ask) = types.ask {
        operation["requestBody"] =
            json!({"required": route.needs_body(), "content": {"application/json": {"schema": ask}}});
    }
    operation
}

/// What a byte stream is.
fn bytes_media(route: Route) -> &'static str {
    match route {
        Route::PortCapture => "application/x-pcapng",
        Route::Metrics => "text/plain; version=0.0.4; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// What is said over a WebSocket.
fn spoken(route: Route) -> &'static str {
    match route {
        Route::VmAgentSocket => {
            "The first message is text, {\"exec\": Exec}; further ones are {\"signal\": NUMBER} and {\"resize\": ConsoleSize}. \
             Binary messages begin with one byte: 0 for standard input, which ends with a message of that byte alone; 1 for standard \
             output and 2 for standard error. The last message of the service is text, {\"exit\": STATUS}, before it {\"error\": WHY} if \
             the command cannot be run."
        }
        Route::VmConsoleSocket => {
            "Binary messages are its bytes, both ways; the text message {\"resize\": ConsoleSize} says how large its terminal is."
        }
        _ => "Binary messages are its bytes, both ways.",
    }
}

/// A variable of a path.
fn place(name: &str) -> Value {
    let (schema, about) = match name {
        "vm" | "snapshot" => {
            (json!({"type": "string", "minLength": 1}), "name, id, or the beginning of its id")
        }
        "port" => (json!({"type": "integer", "minimum": 1, "maximum": 65535}), "a TCP port of the guest"),
        "disk" | "share" | "nic" => (json!({"type": "integer", "minimum": 0}), "which of them, from 0"),
        "operation" => (json!({"type": "integer", "minimum": 1}), "its number"),
        "number" => (json!({"type": "integer", "minimum": 1}), "which of them, from 1"),
        _ => (json!({"type": "string", "minLength": 1}), "its name"),
    };
    json!({"name": name, "in": "path", "required": true, "description": about, "schema": schema})
}

/// What may come in the place of a success, with the kinds of [`ErrorBody`].
const REFUSALS: [(&str, &str); 14] = [
    ("400", "the request is wrong (usage)"),
    ("401", "nobody knows who asks: no token or certificate that is valid (denied)"),
    ("403", "who asks may not do this (denied)"),
    ("404", "it does not exist (not-found)"),
    ("405", "the path does not take this method; Allow says which it takes (usage)"),
    ("409", "it exists already, or is in a state that does not allow this (conflict)"),
    ("413", "the body is too large (usage)"),
    ("415", "the body is not application/json (usage)"),
    ("421", "this service is not the host that was asked for (denied)"),
    ("422", "the file is no program that can be run (not-runnable)"),
    ("426", "this is a WebSocket, and none was asked for (usage)"),
    ("500", "it went wrong (error)"),
    ("503", "it still goes on (still-going-on)"),
    ("507", "the host has no memory, disk or processors for it (no-capacity)"),
];

fn statuses(route: Route) -> impl Iterator<Item = &'static str> {
    let body = route.takes_body();
    let socket = route.endpoint().answer == Answer::Socket;
    REFUSALS.iter().map(|(status, _)| *status).filter(move |status| match *status {
        "413" | "415" => body,
        "426" => socket,
        _ => true,
    })
}

/// Answers that several endpoints have.
fn shared(error: &Schema, begun: &Schema) -> Value {
    let mut responses = Map::new();
    responses.insert(
        "202".into(),
        json!({
            "description": "it was begun, and goes on by itself (?detach=true)",
            "headers": {"Location": {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": begun}},
        }),
    );
    for (status, about) in REFUSALS {
        let mut response = json!({"description": about, "content": {"application/json": {"schema": error}}});
        match status {
            "405" => response["headers"] = json!({"Allow": {"schema": {"type": "string"}}}),
            "426" => response["headers"] = json!({"Upgrade": {"schema": {"const": "websocket"}}}),
            "401" => response["headers"] = json!({"WWW-Authenticate": {"schema": {"type": "string"}}}),
            _ => {}
        }
        responses.insert(status.to_string(), response);
    }
    Value::Object(responses)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The document in `docs` is this one, which the service serves. VIV_GOLDEN=1 writes it anew.
    #[test]
    fn the_document_is_that_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let now = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("VIV_GOLDEN").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let how = "VIV_GOLDEN=1 cargo test -p viv-api --features schema";
        assert!(kept == now, "docs/openapi.json differs; write it anew: {how}");
    }

    #[test]
    fn what_takes_a_document_has_a_type_for_it() {
        let mut generators = Generators::new();
        for endpoint in TABLE {
            let types = generators.types(endpoint.route);
            assert_eq!(types.ask.is_some(), endpoint.route.takes_body(), "{}", endpoint.path);
            let has_schema = types.answer.is_some();
            assert_eq!(
                has_schema,
                matches!(endpoint.answer, Answer::Json | Answer::Lines | Answer::Events),
                "{}",
                endpoint.path
            );
        }
    }
}
