//! A VM as a document: `viv inspect` shows it, `viv create -f` takes it, `viv schema` describes it.
mod kit;

use kit::Home;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The schema in `docs` is that of the types. VIV_GOLDEN=1 writes it anew.
#[test]
fn the_schema_is_that_of_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vm.schema.json");
    let schema = schemars::schema_for!(viv_api::vm::VmCreate);
    let now = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("VIV_GOLDEN").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == now, "docs/vm.schema.json differs; write it anew: VIV_GOLDEN=1 cargo test -p viv");
    let home = Home::new("schema");
    assert!(home.viv(&["schema"]).ok().out == kept, "the command has another one: build it again");
}

#[test]
fn what_inspect_shows_makes_another_vm_like_it() {
    let home = Home::new("document");
    home.kernel();
    home.file("data.raw", &[0; 4096]);
    home.file("more.raw", &[0; 4096]);
    fs::create_dir(home.dir.join("shared")).unwrap();
    let document = home.file(
        "web.yaml",
        b"name: web\nkernel: kernel\ncpus: 2\nmemory_mib: 32\naccel: soft\nsoft: {count: true}\nappend: a=b\n\
          disks:\n- {path: ./data.raw, limits: {iops: 500}, serial: data}\n\
          shares:\n- {path: shared, target: /srv, read_only: true}\n\
          ports: ['127.0.0.1:0:80']\non_reboot: end\n"
            .replace_port()
            .as_slice(),
    );
    assert_eq!(home.viv(&["create", "-f", &document]).ok().out, "web\n");
    let web = home.inspect("web");
    assert_eq!((&web["state"], &web["spec"]["start"]), (&json!("defined"), &Value::Null));
    let path = |name: &str| json!(home.dir.join(name).to_str().unwrap());
    assert_eq!(web["spec"]["kernel"], path("kernel"), "paths begin at the document");
    assert_eq!(web["spec"]["disks"][0]["path"], path("data.raw"));
    assert_eq!(web["machine"]["disks"][0]["limits"]["iops"], 500);

    // The document that is exported is the one that is applied.
    let exported = home.dir.join("web.json").to_str().unwrap().to_string();
    home.viv(&["export", "web", &exported]).ok();
    home.viv(&["export", "web", &exported]).fails(4, &["web.json", "exists"]);
    assert_eq!(home.viv(&["export", "web", "-"]).ok().out, fs::read_to_string(&exported).unwrap());
    assert_eq!(home.viv(&["diff", "-f", &exported]).ok().out, "");
    home.viv(&["apply", "-f", &exported]).ok();
    home.viv(&["export", "nobody", "-"]).fails(3, &["nobody"]);
    home.viv(&["export", "--disk", "0", "web", "x.json"]).fails(2, &["--disk"]);

    // What is changed later is in the document, too.
    home.viv(&["attach", "web", home.dir.join("more.raw").to_str().unwrap()]).ok();
    home.viv(&["disk", "limit", "web", "0", "iops=300"]).ok();
    let shown = home.viv(&["inspect", "web"]).ok().out;
    home.feed(&["create", "-f", "-"], &shown).fails(4, &["web", "exists already"]);
    assert_eq!(home.feed(&["create", "-f", "-", "--name", "web2"], &shown).ok().out, "web2\n");
    let (mut web, web2) = (home.inspect("web"), home.inspect("web2"));
    assert_eq!(web["spec"]["disks"][0]["limits"]["iops"], 300);
    assert_eq!(web["spec"]["disks"].as_array().unwrap().len(), 2);
    web["spec"]["name"] = json!("web2");
    assert_eq!(web["spec"], web2["spec"]);
    let of_machine = |mut vm: Value| {
        vm["machine"]["nics"][0]["mac"].take(); // each has its own
        vm["machine"].take()
    };
    assert_eq!(of_machine(web), of_machine(web2));

    // It is a VM like any other.
    home.viv(&["start", "web2"]).ok();
    home.viv(&["kill", "web2"]).ok();
    let both = home.viv(&["--json", "inspect", "web", "web2"]).ok().out;
    home.feed(&["create", "-f", "-", "--name", "x"], &both).fails(2, &["2 VMs", "--name"]);
}

/// A free port of this host in a document.
trait ReplacePort {
    fn replace_port(&self) -> Vec<u8>;
}

impl ReplacePort for [u8] {
    fn replace_port(&self) -> Vec<u8> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        String::from_utf8_lossy(self).replace(":0:80", &format!(":{port}:80")).into_bytes()
    }
}

#[test]
fn a_wrong_document_is_told_what_is_wrong() {
    let home = Home::new("wrong-document");
    let kernel = home.kernel();
    let create = |text: &str| home.feed(&["create", "-f", "-"], text);
    create("cpus: two").fails(2, &["standard input", "cpus", "line 1"]);
    create("name: web\nmemory: 5\n")
        .fails(2, &["unknown field `memory`", "line 2", "memory_mib", "viv schema"]);
    create(&format!("kernel: {kernel}\ncpus: 0\n")).fails(2, &["0 CPUs", "1 to 64"]);
    create(&format!("kernel: {kernel}\ncpus: 65\n")).fails(2, &["65 CPUs"]);
    create(&format!("kernel: {kernel}\nmemory_mib: 1\n")).fails(2, &["1 MiB"]);
    create(&format!("kernel: {kernel}\nname: 'a b'\n")).fails(2, &["\"a b\""]);
    create(&format!("kernel: {kernel}\ndisks: [{{path: /nowhere}}]\n")).fails(3, &["/nowhere"]);
    create(&format!("kernel: {kernel}\ndisks: [{{path: k, serial: ' '}}]\n")).fails(2, &["serial number"]);
    create(&format!("kernel: {kernel}\nimage_disks: [{{}}]\n")).fails(2, &["image_disks", "has 0"]);
    create("image: nosuch").fails(3, &["nosuch"]);
    create("").fails(2, &["describes no VM"]);
    create(&"#".repeat((1 << 20) + 1)).fails(2, &["larger than 1024 KiB"]);
    home.viv(&["create"]).fails(2, &["--file"]);
    home.viv(&["create", "-f", "/nowhere"]).fails(3, &["/nowhere"]);
    home.viv(&["create", "-f", home.dir.to_str().unwrap()]).fails(1, &["cannot read"]);
    let binary = home.file("binary", &[0xff, 0xfe]);
    home.viv(&["create", "-f", &binary]).fails(2, &["not text"]);
    assert_eq!(home.names(), [""; 0], "nothing is kept of what was refused");
    assert_eq!(home.vm_files(), [""; 0]);
}
