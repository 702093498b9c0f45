//! Paths as bytes: Linux knows no encoding of names.

/// The parts of a path that name something.
pub(crate) fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The path inside the root, without `.`, `..` and doubled slashes; `..` at the root stays there, as in a kernel. Links
/// are not looked at. Empty for the root.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for part in parts(path) {
        if part == b".." {
            kept.pop();
        } else {
            kept.push(part);
        }
    }
    kept.join(&b'/')
}

/// The directory and the name in it.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => {
            let (parent, name) = path.split_at(slash);
            (parent, name.get(1..).unwrap_or_default())
        }
        None => (b"", path),
    }
}

/// For messages.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(path).escape_debug().to_string();
    if text.chars().count() > 200 {
        text = text.chars().take(200).chain("…".chars()).collect();
    }
    format!("/{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_inside_the_root() {
        for (path, cleaned) in [
            ("./usr//bin/./su", "usr/bin/su"),
            ("/etc/passwd", "etc/passwd"),
            ("a/../../../etc/passwd", "etc/passwd"),
            ("..", ""),
            ("./", ""),
            ("a/..", ""),
            ("...", "..."),
        ] {
            assert_eq!(clean(path.as_bytes()), cleaned.as_bytes(), "{path}");
        }
        assert_eq!(split(b"usr/bin/su"), (&b"usr/bin"[..], &b"su"[..]));
        assert_eq!(split(b"su"), (&b""[..], &b"su"[..]));
    }
}
