//! Documents that describe VMs: what `viv create -f` takes, in YAML or JSON, and `viv inspect` shows.
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use viv_api::image::is_disk_file;
use viv_api::vm::VmCreate;
use viv_model::{Fault, Kind};
use viv_oci::Reference;

/// A VM as `viv inspect` shows it, of which only what it is made from counts.
#[derive(Deserialize)]
struct Shown {
    spec: VmCreate,
}

/// One VM of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) ask: VmCreate,
    /// The fields that it mentions.
    pub(crate) said: BTreeSet<String>,
}

/// The VMs that `text` describes: one, several as a list, or what `viv inspect` printed. `name` is what the
/// document is called; its paths begin at `base`.
pub(crate) fn parse(text: &str, name: &str, base: &Path) -> Result<Vec<Document>, Fault> {
    let shape: Value = read(text, name)?;
    let is_shown =
        |value: &Value| value.get("spec").is_some_and(Value::is_object) && value.get("id").is_some();
    let mut vms = match &shape {
        Value::Array(vms) if !vms.is_empty() && vms.iter().all(is_shown) => specs(read(text, name)?),
        Value::Array(vms) if !vms.is_empty() => read(text, name)?,
        Value::Object(_) if is_shown(&shape) => specs(vec![read(text, name)?]),
        Value::Object(fields) if !fields.is_empty() => vec![read(text, name)?],
        _ => return Err(wrong(name, "it describes no VM")),
    };
    vms.iter_mut().try_for_each(|vm| settle(vm, name, base))?;
    let shapes = match &shape {
        Value::Array(shapes) => shapes.as_slice(),
        _ => std::slice::from_ref(&shape),
    };
    let said = shapes.iter().map(|shape| {
        let fields = shape.get("spec").filter(|_| is_shown(shape)).unwrap_or(shape).as_object();
        fields.map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
    });
    Ok(vms.into_iter().zip(said).map(|(ask, said)| Document { ask, said }).collect())
}

fn specs(shown: Vec<Shown>) -> Vec<VmCreate> {
    shown.into_iter().map(|vm| vm.spec).collect()
}

/// JSON is YAML, too (YAML 1.2 §1.3).
fn read<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, Fault> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    let mut field = None;
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        serde_path_to_error::deserialize(reader).map_err(|error| {
            field = Some(error.path().to_string()).filter(|path| path != "." && !path.contains('?'));
            error.into_inner()
        })
    })
    .map_err(|error| match field {
        Some(field) => wrong(name, &format!("{field}: {error}")),
        None => wrong(name, &error.to_string()),
    })
}

fn wrong(name: &str, why: &str) -> Fault {
    Fault::new(
        Kind::Usage,
        format!("{name} is not understood: {}", why.replace('\n', " ")),
        "see what it may say: viv schema, or an example: viv inspect VM",
    )
}

/// Makes its paths absolute, and says no to what belongs to a command alone.
fn settle(vm: &mut VmCreate, name: &str, base: &Path) -> Result<(), Fault> {
    if vm.attended_by.is_some() {
        return Err(wrong(name, "attended_by: only a command that waits can say that"));
    }
    let disks = vm.disks.iter_mut().flat_map(|disk| std::iter::once(&mut disk.path).chain(&mut disk.allow));
    let shares = vm.shares.iter_mut().map(|share| &mut share.path);
    let files = vm.files.iter_mut().map(|file| &mut file.path);
    let ports = vm.console_ports.iter_mut().filter_map(|port| port.path.as_mut());
    let seed = vm.cloud_init.user_data.iter_mut().chain(vm.cloud_init.network_config.as_mut());
    let program = vm.program.as_mut().map(|program| &mut program.file);
    let program = program.filter(|file| !is_image(file, base) && !file.as_os_str().is_empty());
    let boot = vm.kernel.iter_mut().chain(vm.initrd.as_mut()).chain(program);
    for path in boot.chain(disks).chain(shares).chain(files).chain(ports).chain(seed) {
        if path.as_os_str().is_empty() {
            return Err(wrong(name, "a path is empty"));
        }
        *path = lexical(&base.join(&*path));
    }
    if let Some(image) = vm.image.as_mut().filter(|image| is_disk_file(image)) {
        let path = lexical(&base.join(&*image)).into_os_string();
        *image = path.into_string().map_err(|_| wrong(name, "the image's path is no text"))?;
    }
    Ok(())
}

/// Whether a program's file is none, but the reference of an image.
fn is_image(file: &Path, base: &Path) -> bool {
    file.to_str().is_some_and(Reference::is_one) && !base.join(file).exists()
}

/// Without `.`; `..` stays, for what is before it may be a link.
fn lexical(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<VmCreate>, Fault> {
        let documents = parse(text, "vm.yaml", Path::new("/base"))?;
        Ok(documents.into_iter().map(|document| document.ask).collect())
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml =
            "name: web\ncpus: 2\nports: ['127.0.0.1:8080:80']\ndisks:\n- path: d.raw\n  limits: {iops: 5}\n";
        let json = r#"{"name": "web", "cpus": 2, "ports": ["127.0.0.1:8080:80"],
                       "disks": [{"path": "/base/./d.raw", "limits": {"iops": 5}}]}"#;
        let vm = of(yaml).unwrap().remove(0);
        assert_eq!(of(json).unwrap(), vec![vm.clone()]);
        let said = &parse("name: web\ncpus: 2\n", "vm.yaml", Path::new("/base")).unwrap()[0].said;
        assert_eq!(said.iter().collect::<Vec<_>>(), ["cpus", "name"]);
        assert_eq!(vm.disks[0].path, Path::new("/base/d.raw"));
        assert_eq!(of(&format!("- {json}\n- name: db\n")).unwrap()[1].name.as_deref(), Some("db"));
    }

    #[test]
    fn what_inspect_shows_is_understood() {
        let spec = VmCreate { name: Some("web".into()), cpus: Some(2), ..VmCreate::default() };
        let shown = serde_json::json!([{"id": "0123456789ab", "state": "running", "spec": spec}]);
        assert_eq!(of(&shown.to_string()).unwrap(), vec![spec.clone()]);
        assert_eq!(of(&shown[0].to_string()).unwrap(), [spec]);
        let wrong = of("- id: x\n  spec:\n    nam: web\n").unwrap_err();
        assert!(wrong.message.contains("`nam`") && wrong.message.contains("line 3"), "{wrong}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, words) in [
            ("nam: web", &["unknown field `nam`", "line 1, column 1", "memory_mib"][..]),
            ("cpus: two", &["cpus", "line 1"]),
            ("name: web\ncpus: -1", &["cpus", "line 2"]),
            ("disks:\n- path: /d\n  limits:\n    iops: x", &["disks[0].limits.iops", "line 4"]),
            ("disks:\n- read_only: true", &["disks[0]", "missing field `path`", "line 2"]),
            ("disks:\n- path: /d\n  format: floppy", &["disks[0].format", "floppy", "raw"]),
            ("disks:\n- path: ''", &["a path is empty"]),
            ("ports: ['80']", &["ports[0]", "cannot publish \"80\"", "line 1"]),
            ("accel: fast", &["accel", "fast", "soft"]),
            ("start: yes", &["start", "true/false"]),
            ("name: a\nname: b", &["duplicate", "name", "line 2"]),
            ("a: &x [*x]", &["line 1"]),
            ("name: [", &["line 1"]),
            ("", &["describes no VM"]),
            ("# nothing\n", &["describes no VM"]),
            ("[]", &["describes no VM"]),
            ("{}", &["describes no VM"]),
            ("web", &["describes no VM"]),
            ("- 3", &["line 1"]),
            ("attended_by: {pid: 1, start_ticks: 1}", &["attended_by"]),
        ] {
            let fault = of(text).unwrap_err();
            assert_eq!(fault.kind, Kind::Usage, "{text}");
            assert!(fault.message.starts_with("vm.yaml ") && !fault.message.contains('\n'), "{fault}");
            for word in words {
                assert!(fault.message.contains(word), "{text:?}: {fault} lacks {word:?}");
            }
        }
    }
}
