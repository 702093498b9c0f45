//! Kernel modules: what each needs, read from its own `.modinfo` section, and the order to load them in.
use std::collections::{BTreeMap, BTreeSet};

/// A module's name as the kernel spells it: `virtio-rng.ko.xz` is `virtio_rng`.
pub(super) fn name_of(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

/// Dashes and underscores are one letter in module names.
pub(super) fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules that this ELF object wants to be loaded before it.
pub(super) fn depends(object: &[u8]) -> Vec<String> {
    let Some(info) = section(object, b".modinfo") else { return Vec::new() };
    info.split(|byte| *byte == 0)
        .filter_map(|record| std::str::from_utf8(record).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(normal)
        .collect()
}

/// A section's content by its name (ELF-64, System V ABI chapter 4).
fn section<'a>(object: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if !object.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = number(object, 0x28, 8)?;
    let (entry_len, count, names) =
        (number(object, 0x3a, 2)?, number(object, 0x3c, 2)?, number(object, 0x3e, 2)?);
    let header = |index: usize| object.get(table.checked_add(index.checked_mul(entry_len)?)?..);
    let content = |header: &[u8]| {
        let (start, length) = (number(header, 0x18, 8)?, number(header, 0x20, 8)?);
        object.get(start..start.checked_add(length)?)
    };
    let names = content(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = names.get(number(header, 0, 4)?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        if name == wanted { content(header) } else { None }
    })
}

/// A little-endian number of `length` bytes, at most 8.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

/// `wanted` and all that they need, each after what it needs. `needs` knows what is there; what is not (built into
/// the kernel, or not part of it) is left out.
pub(super) fn load_order(wanted: &[&str], needs: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    fn visit(
        name: &str,
        needs: &BTreeMap<String, Vec<String>>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) {
        let Some(before) = needs.get(name) else { return };
        if !seen.insert(name.to_string()) {
            return;
        }
        for name in before {
            visit(name, needs, seen, order);
        }
        order.push(name.to_string());
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in wanted {
        visit(&normal(name), needs, &mut seen, &mut order);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let needs: BTreeMap<String, Vec<String>> = [
            ("virtio_ring", vec!["virtio"]),
            ("virtio", vec![]),
            ("virtio_pci", vec!["virtio_ring", "virtio"]),
            ("loop_a", vec!["loop_b"]),
            ("loop_b", vec!["loop_a"]),
        ]
        .into_iter()
        .map(|(name, needs)| (name.to_string(), needs.into_iter().map(str::to_string).collect()))
        .collect();
        assert_eq!(load_order(&["virtio-pci", "builtin"], &needs), ["virtio", "virtio_ring", "virtio_pci"]);
        assert_eq!(load_order(&["loop_a"], &needs), ["loop_b", "loop_a"]);
        assert_eq!(name_of("kernel/drivers/char/hw_random/virtio-rng.ko.xz"), "virtio-rng");
    }

    /// An ELF object with nothing but `.modinfo`.
    fn object(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        let info_at = bytes.len();
        bytes.extend(info);
        let names_at = bytes.len();
        bytes.extend(names);
        let table = bytes.len();
        for (name, at, length) in [(0, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&(name as u32).to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            bytes.extend(header);
        }
        bytes[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        bytes[0x3a] = 64;
        bytes[0x3c] = 3;
        bytes[0x3e] = 2;
        bytes
    }

    #[test]
    fn needs_are_read_from_the_module() {
        let bytes = object(b"license=GPL\0depends=virtio,virtio-ring\0name=x\0");
        assert_eq!(depends(&bytes), ["virtio", "virtio_ring"]);
        assert!(depends(&object(b"depends=\0")).is_empty());
        assert!(depends(b"not a module").is_empty());
    }

    proptest! {
        #[test]
        fn a_broken_module_never_panics(at in 0usize..300, byte in any::<u8>(), cut in 0usize..300) {
            let mut bytes = object(b"depends=a\0");
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(length - cut % length);
            depends(&bytes);
        }
    }
}
