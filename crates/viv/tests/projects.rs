//! Projects, by the command and over the network: what is of another one is as if it were not there.
mod kit;

use kit::Home;
use kit::lab::Lab;
use serde_json::{Value, json};

/// What only the other project has, and nobody else may read.
const HIDDEN: &str = "hidden-in-the-other-one";

/// Runs a VM in a project; gives its identity.
fn run(home: &Home, project: &str, name: &str, label: &str) -> String {
    let kernel = home.kernel();
    let words = ["--project", project, "run", "-d", "--name", name, "--accel", "soft", "--label", label];
    home.viv(&[&words[..], &["--kernel", &kernel]].concat()).ok();
    let shown = home.viv(&["--project", project, "inspect", name]).ok().json();
    shown[0]["id"].as_str().unwrap().to_string()
}

/// A host with two projects that have the same things, called the same but for one word.
struct Two {
    lab: Lab,
    /// Of a token of any role that is bound to `acme`.
    admin: String,
    ours: String,
    theirs: String,
    snapshot: String,
}

impl Two {
    fn new(test: &str) -> Two {
        let lab = Lab::new(test);
        let host = &lab.host;
        for project in ["acme", "other"] {
            host.viv(&["project", "create", project]).ok();
        }
        let (ours, theirs) =
            (run(host, "acme", "web", "of=us"), run(host, "other", "theirs", &format!("of={HIDDEN}")));
        run(host, "other", "web", &format!("of={HIDDEN}"));
        for (project, word) in [("acme", "our"), ("other", "their")] {
            let viv = |words: &[&str]| host.viv(&[&["--project", project], words].concat()).ok();
            viv(&["network", "create", &format!("{word}-lan")]);
            viv(&["secgroup", "create", &format!("{word}-group")]);
            viv(&["volume", "create", &format!("{word}-data")]);
            viv(&["snapshot", "create", "web", &format!("{word}-snapshot")]);
            viv(&["template", "create", "--now", "web", &format!("{word}-template")]);
        }
        let shown = host.viv(&["--project", "other", "snapshot", "ls", "--json"]).ok().json();
        let snapshot = shown[0]["id"].as_str().unwrap().to_string();
        let admin = lab.bound("acme-admin", "admin", "acme");
        lab.bound("acme-operator", "operator", "acme");
        lab.bound("acme-viewer", "viewer", "acme");
        Two { lab, admin, ours, theirs, snapshot }
    }

    /// What the bound admin is answered.
    fn ask(&self, method: &str, path: &str, headers: &[&str], body: Option<&Value>) -> (u16, String) {
        let bearer = format!("Authorization: Bearer {}", self.admin);
        let mut words = vec!["--http1.1", "-X", method, "-H", &bearer];
        headers.iter().for_each(|header| words.extend(["-H", header]));
        let text = body.map(Value::to_string);
        if let Some(text) = &text {
            words.extend(["-H", "Content-Type: application/json", "-d", text]);
        }
        self.lab.curl(&words, path)
    }

    /// All that there is, as its owner sees it, but what changes by itself.
    fn state(&self) -> Value {
        let viv = |words: &[&str]| self.lab.host.viv(&[words, &["--json"]].concat()).ok().json();
        let mut vms = viv(&["ps", "-a", "--all-projects"]);
        for vm in vms.as_array_mut().unwrap() {
            *vm = json!([vm["id"], vm["name"], vm["project"], vm["state"], vm["revision"], vm["spec"]]);
        }
        json!([
            vms,
            viv(&["--all-projects", "snapshot", "ls"]),
            viv(&["--all-projects", "network", "ls"]),
            viv(&["--all-projects", "secgroup", "ls"]),
            viv(&["--project", "other", "volume", "ls"]),
            viv(&["project", "ls"]),
            viv(&["token", "ls"]),
            viv(&["limits"])["limits"],
            viv(&["images"]),
        ])
    }
}

/// Every operation of the document, with the names of another project's things, by who may do all in his own: what belongs to the host is
/// refused as that, the rest is not there, in the words for what never was, and nothing is changed.
#[test]
fn nothing_of_another_project_can_be_named() {
    let two = Two::new("projects-routes");
    let document: Value = serde_json::from_str(&two.ask("GET", "/v1/openapi.json", &[], None).1).unwrap();
    let before = two.state();
    let (mut named, mut listed, mut hosts) = (0, 0, 0);
    for (template, path) in document["paths"].as_object().unwrap() {
        for (method, operation) in path.as_object().unwrap() {
            let method = method.to_uppercase();
            let id = operation["operationId"].as_str().unwrap();
            let reach = operation["x-reach"].as_str().unwrap();
            let headers: &[&str] = match id {
                _ if id.ends_with("Socket") => &[
                    "Connection: Upgrade",
                    "Upgrade: websocket",
                    "Sec-WebSocket-Version: 13",
                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                ],
                "VmConsole" | "VmAgent" | "VmConnect" => &["Connection: upgrade", "Upgrade: vivarium-stream"],
                _ => &[],
            };
            let body = operation.get("requestBody").map(|_| match id {
                "VmCreate" => json!({"image": "their-template", "start": true}),
                "NetworkConnect" | "SecGroupJoin" => json!({"vm": "theirs"}),
                "SnapshotDiff" => json!({"other": "their-snapshot"}),
                "Explain" => json!({"from": "theirs", "to": "web", "what": "tcp/80"}),
                "TicketCreate" => json!({"path": "/v1/vms/theirs/nothing"}),
                "VolumeCreate" => json!({"name": "ours"}),
                "ImageBuild" => json!({"if_missing": true}),
                _ => json!({}),
            });
            let fill = |vm: &str, snapshot: &str, word: &str| {
                let rest =
                    [("{port}", "1"), ("{number}", "1"), ("{disk}", "0"), ("{share}", "0"), ("{nic}", "0")];
                let path = rest.iter().fold(template.clone(), |path, (from, to)| path.replace(from, to));
                path.replace("{vm}", vm)
                    .replace("{snapshot}", snapshot)
                    .replace("{network}", &format!("{word}-lan"))
                    .replace("{group}", &format!("{word}-group"))
                    .replace("{volume}", &format!("{word}-data"))
                    .replace("{operation}", "1")
                    .replace("{project}", "other")
                    .replace("{token}", "acme-viewer")
                    .replace("{image}", "nothing")
            };
            let path = fill("theirs", "their-snapshot", "their");
            let (status, text) = two.ask(&method, &path, headers, body.as_ref());
            let what = format!("{method} {path} ({id}, {reach}): {status} {text}");
            assert!(!text.contains(HIDDEN) && !text.contains(&two.theirs), "{what}");
            match reach {
                "host" | "owner" => {
                    hosts += 1;
                    assert_eq!(status, 403, "{what}");
                    assert!(text.contains("is the host's, and token:acme-admin is bound"), "{what}");
                }
                "project" if template.contains('{') || matches!(id, "VmCreate" | "Explain") => {
                    named += 1;
                    let of_host = ["VmDiskAttach", "VmShareAttach"].contains(&id);
                    assert_eq!(status, if of_host { 403 } else { 404 }, "{what}");
                    // As what never was; by its identity, too, and by the beginning of that.
                    let never = text.replace("their", "never").replace("nevers", "neverwas");
                    let body = body.as_ref().map(|body| {
                        let text = body.to_string().replace("their", "never").replace("nevers", "neverwas");
                        serde_json::from_str::<Value>(&text).unwrap()
                    });
                    let path = fill("neverwas", "never-snapshot", "never");
                    assert_eq!(two.ask(&method, &path, headers, body.as_ref()), (status, never), "{what}");
                    for (vm, snapshot) in
                        [(two.theirs.as_str(), two.snapshot.as_str()), (&two.theirs[..6], &two.snapshot[..6])]
                    {
                        if template.contains("{vm}") || template.contains("{snapshot}") {
                            let path = fill(vm, snapshot, "their");
                            let (by_id, text) = two.ask(&method, &path, headers, body.as_ref());
                            assert_eq!(by_id, status, "{method} {path}: {text}");
                        }
                    }
                }
                "project" => {
                    listed += 1;
                    assert_eq!(status, 200, "{what}");
                    for word in ["their-", "\"theirs\"", "\"other\""] {
                        assert!(!text.contains(word), "{word}: {what}");
                    }
                }
                _ => {}
            }
            // Nor can he go there.
            let mut parameters = operation["parameters"].as_array().unwrap().iter();
            if parameters.any(|known| known["name"] == "project" && known["in"] == "query") {
                let path = format!("{}?project=other", fill("web", "our-snapshot", "our"));
                let (status, text) = two.ask(&method, &path, headers, body.as_ref());
                assert!(status == 403 || status == 404, "{method} {path}: {status} {text}");
            }
        }
    }
    assert!(named > 45 && listed > 8 && hosts > 15, "{named} {listed} {hosts}");
    // What bodies name, with his own things in the path.
    let never = |method: &str, path: &str, body: Value| {
        let as_never = |text: &str| {
            text.replace("their", "never").replace(r#""project":"other""#, r#""project":"never""#)
        };
        let text = as_never(&body.to_string());
        let body_of_never: Value = serde_json::from_str(&text).unwrap();
        let (status, answer) = two.ask(method, path, &[], Some(&body));
        let path_of_never = path.replace("their", "never");
        let (never_status, never) = two.ask(method, &path_of_never, &[], Some(&body_of_never));
        assert_eq!(status, 404, "{path} {body}: {answer}");
        assert_eq!(
            (status, answer.replace("their", "never").replace("other", "never")),
            (never_status, never)
        );
    };
    never("POST", "/v1/vms", json!({"image": "our-template", "start": true, "project": "other"}));
    never("POST", "/v1/vms", json!({"image": "our-template", "start": true, "groups": ["their-group"]}));
    never("POST", "/v1/vms/web/rollback", json!({"snapshot": "their-snapshot"}));
    never("POST", "/v1/vms/web/nics", json!({"net": "their-lan"}));
    never("POST", "/v1/vms/web/nics", json!({"net": "our-lan", "groups": ["their-group"]}));
    never("POST", "/v1/networks/our-lan/vms", json!({"vm": "theirs"}));
    never("POST", "/v1/networks/their-lan/vms", json!({"vm": "web"}));
    never("POST", "/v1/secgroups/our-group/vms", json!({"vm": "theirs"}));
    never("POST", "/v1/secgroups/their-group/vms", json!({"vm": "web"}));
    never("POST", "/v1/snapshots/our-snapshot/diff", json!({"other": "their-snapshot"}));
    for (path, body) in [
        ("/v1/vms", json!({"image": "our-template", "net": "user,host"})),
        ("/v1/vms/web/nics", json!({"net": "user,host"})),
        ("/v1/vms/web/disks", json!({"path": "/dev/sda"})),
        ("/v1/vms", json!({"kernel": "/boot/vmlinuz"})),
        ("/v1/images/nothing/build", json!({})),
    ] {
        assert_eq!(two.ask("POST", path, &[], Some(&body)).0, 403, "{path} {body}");
    }
    assert_eq!(two.state(), before, "nothing was changed");
}

#[test]
fn a_project_is_a_host_of_its_own_to_who_is_bound_to_it() {
    let two = Two::new("projects-life");
    let lab = &two.lab;
    let by = |words: &[&str]| lab.by("acme-operator", words);
    assert_eq!(by(&["ps", "-a", "-q", "--all-projects"]).ok().out, "web\n");
    assert_eq!(by(&["inspect", "web"]).ok().json()[0]["id"], two.ours.as_str());
    assert_eq!(by(&["project", "ls", "-q"]).ok().out, "acme\n");
    by(&["inspect", "theirs"]).fails(3, &["no VM is called \"theirs\""]);
    by(&["--project", "other", "ps"]).fails(3, &["no project is called \"other\""]);
    by(&["token", "ls"]).fails(6, &["admin"]);
    lab.by("acme-admin", &["token", "ls"]).fails(6, &["is the host's", "bound to the project acme"]);
    lab.by("acme-viewer", &["stop", "web"]).fails(6, &["operator"]);
    assert_eq!(by(&["info", "--json"]).ok().json()["vms"], json!({"live": 1, "all": 1}));
    // Metrics and events of his own; also of one that is gone, for who comes back.
    let bearer = format!("Authorization: Bearer {}", two.admin);
    let get = |path: &str| lab.curl(&["-H", &bearer], path).1;
    let metrics = get("/metrics");
    assert!(
        metrics.contains(&format!("viv_vm_up{{id=\"{}\",vm=\"web\",project=\"acme\"}} 1", two.ours)),
        "{metrics}"
    );
    assert!(!metrics.contains(&two.theirs) && !metrics.contains("viv_http_requests"), "{metrics}");
    lab.host.viv(&["--project", "other", "rm", "-f", "theirs"]).ok();
    by(&["fork", "web", "--name", "theirs"]).ok(); // the name is free here, always
    by(&["rm", "-f", "theirs"]).ok();
    let events = get("/v1/events?since=1h");
    assert!(events.contains("vm.removed") && events.contains("our-snapshot"), "{events}");
    assert!(!events.contains(&two.theirs) && !events.contains("their-snapshot"), "{events}");
    assert!(!events.contains("other") && !events.contains("limits"), "{events}");
    let bound = format!("Authorization: Bearer {}", two.admin);
    let words = ["-H", &bound, "--max-time", "2", "-N"];
    let watched = lab.curl(&words, "/v1/vms?watch=true&since=1").1;
    assert!(watched.contains(&two.ours) && !watched.contains(&two.theirs), "{watched}");
    // The owner sees all, and acts where he says.
    let host = &lab.host;
    assert_eq!(host.viv(&["ps", "-a", "-q"]).ok().out, "", "in default there is nothing");
    let all = host.viv(&["ps", "-a", "--all-projects"]).ok().out;
    assert!(all.starts_with("PROJECT") && all.contains("acme") && all.contains("other"), "{all}");
    host.viv(&["--project", "nowhere", "ps"]).fails(3, &["nowhere", "viv project ls"]);
    host.viv(&["--project", "acme", "stop", "web", "-t", "0"]).ok();
    // A document carries its project.
    let document = host.viv(&["--project", "acme", "inspect", "web"]).ok().out;
    assert!(document.contains("\"project\": \"acme\""), "{document}");
    let file = host.file("web.json", document.as_bytes());
    assert_eq!(host.viv(&["diff", "-f", &file]).ok().out, "", "it is there, and so");
    // Nothing is forgotten while something is in it.
    host.viv(&["project", "rm", "acme"]).fails(4, &["is not empty"]);
    host.viv(&["project", "rm", "default"]).fails(2, &["always there"]);
    host.viv(&["--project", "acme", "rm", "web"]).ok();
    for words in [
        ["snapshot", "rm", "our-snapshot"],
        ["snapshot", "rm", "our-template"],
        ["network", "rm", "our-lan"],
        ["secgroup", "rm", "our-group"],
        ["volume", "rm", "our-data"],
    ] {
        host.viv(&["project", "rm", "acme"]).fails(4, &["is not empty"]);
        host.viv(&[&["--project", "acme"], &words[..]].concat()).ok();
    }
    host.viv(&["project", "rm", "acme"]).fails(4, &["token or certificate of acme-"]);
    host.viv(&["token", "rm", "acme-admin", "acme-operator", "acme-viewer"]).ok();
    host.viv(&["project", "rm", "acme"]).ok();
    host.viv(&["token", "create", "x", "--role", "viewer", "--project", "acme"]).fails(3, &["acme"]);
}

/// Many at once want what a project's quota has room for: they get all of it, and no more.
#[test]
fn a_race_ends_at_the_quota() {
    let two = Two::new("projects-quota");
    let host = &two.lab.host;
    host.viv(&["--project", "acme", "limits", "--vms", "5"]).ok();
    let made: Vec<u16> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..12)
            .map(|number| {
                let body = json!({"name": format!("vm{number}"), "image": "our-template", "start": true});
                let two = &two;
                scope.spawn(move || two.ask("POST", "/v1/vms", &[], Some(&body)).0)
            })
            .collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    let count = |wanted| made.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(200), count(507)), (4, 8), "{made:?}");
    two.lab.by("acme-operator", &["fork", "web"]).fails(5, &["project acme have 5 of the 5", "viv rm"]);
    assert_eq!(two.lab.by("acme-viewer", &["limits", "--json"]).ok().json()["limits"]["vms"], 5);
    two.lab.by("acme-admin", &["limits", "--vms", "9"]).fails(6, &["is the host's"]);
    let shown = host.viv(&["project", "show", "acme"]).ok().json();
    assert_eq!(shown["described"]["taken"]["vms"], 5);
    // Another project has its own, and the host's holds for all together.
    host.viv(&["--project", "other", "fork", "web", "--name", "more"]).ok();
    host.viv(&["limits", "--vms", "8"]).ok();
    let refused = host.viv(&["--project", "other", "fork", "web", "--name", "more-still"]);
    refused.fails(5, &["no room", "other projects"]);
    assert!(!refused.err.contains('8'), "{}", refused.err);
}
