//! VMs as a document says: created, compared, changed.
use std::fs;
use viv_e2e::Home;

#[test]
fn a_document_is_made_true_and_stays_so() {
    let home = Home::new("apply");
    let file = home.path("vms.yaml");
    let write = |text: &str| fs::write(&file, text).unwrap();
    let shown = |vm: &str| home.json(&["inspect", vm])[0].clone();
    write(
        "- {name: web, memory_mib: 128, accel: soft, start: true}\n- {name: db, cpus: 2, accel: soft, labels: [tier=db]}\n",
    );
    assert_eq!(home.run(&["diff", "-f", &file]).ok().out, "+ web\n+ db\n");
    assert_eq!(home.run(&["diff", "--exit-code", "-f", &file]).status, 1);
    home.run(&["apply", "-f", &file]).ok();
    assert_eq!((&shown("web")["state"], &shown("db")["state"]), (&"running".into(), &"defined".into()));
    // What is true is left alone.
    let revision = shown("web")["revision"].clone();
    assert_eq!(home.run(&["apply", "-f", &file]).ok().out, "");
    assert_eq!(home.run(&["diff", "--exit-code", "-f", &file]).ok().out, "");
    assert_eq!(shown("web")["revision"], revision);

    write(
        "- {name: web, memory_mib: 256, accel: soft, start: true, restart: on-failure:3}\n\
         - {name: db, cpus: 1, accel: soft, labels: [tier=db, of=shop]}\n",
    );
    let differs = home.run(&["diff", "-f", &file]).ok().out;
    assert!(
        differs.contains("~ web: memory_mib: 128 -> 256\n") && differs.contains("~ db: cpus: 2 -> 1\n"),
        "{differs}"
    );
    // A machine is not changed under a guest.
    let refused = home.run(&["apply", "-f", &file]);
    assert!(refused.status == 4 && refused.err.contains("it runs"), "{refused:?}");
    home.run(&["apply", "--restart-vms", "-f", &file]).ok();
    let web = shown("web");
    assert_eq!((&web["state"], &web["machine"]["memory_mib"]), (&"running".into(), &256.into()));
    assert_eq!(web["restart"], "on-failure:3");
    assert_eq!(shown("db")["labels"], serde_json::json!(["tier=db", "of=shop"]));
    assert_eq!(home.run(&["diff", "--exit-code", "-f", &file]).ok().out, "");
    // What inspect shows is such a document.
    fs::write(&file, home.run(&["inspect", "web", "db"]).ok().out).unwrap();
    assert_eq!(home.run(&["diff", "--exit-code", "-f", &file]).ok().out, "");

    write("{name: db, kernel: /bin/true, cpus: 4}");
    let refused = home.run(&["apply", "-f", &file]);
    assert!(refused.status == 4 && refused.err.contains("kernel"), "{refused:?}");
    assert_eq!(shown("db")["machine"]["cpus"], 1, "nothing of it was done");
    write("{cpus: 4}");
    assert_eq!(home.run(&["apply", "-f", &file]).status, 2);

    home.run(&["update", "db", "--cpus", "3", "--memory", "64M", "--restart", "always", "--label", "a=b"])
        .ok();
    let db = shown("db");
    assert_eq!((&db["machine"]["cpus"], &db["machine"]["memory_mib"]), (&3.into(), &64.into()));
    assert_eq!((&db["restart"], &db["labels"]), (&"always".into(), &serde_json::json!(["a=b"])));
    assert_eq!(home.json(&["limits"])["described"]["taken"]["cpus"], 4, "what has grown counts");
    assert_eq!(home.run(&["update", "web", "--cpus", "2"]).status, 4);
    assert_eq!(home.run(&["update", "db", "--memory", "100000000M"]).status, 5);
    assert_eq!(home.run(&["update", "db", "--cpus", "0"]).status, 2);
    assert_eq!(home.run(&["update", "db"]).status, 2);
    home.run(&["limits", "--cpus", "5"]).ok();
    assert_eq!(home.run(&["update", "db", "--cpus", "5"]).status, 5);
    home.run(&["update", "db", "--cpus", "4"]).ok();
}
