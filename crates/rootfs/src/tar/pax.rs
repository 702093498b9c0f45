//! Records of pax extended headers (POSIX.1-2017, pax, "pax Extended Header"), with those of GNU tar, star and libarchive.
use super::Mtime;
use crate::fault::damaged;
use std::collections::BTreeMap;
use viv_model::Fault;

/// What extended headers say of the next member.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Mtime>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: Sparse,
}

/// Sparse files in GNU tar's three pax forms (GNU tar manual, "Storing Sparse Files", 0.0, 0.1, 1.0).
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    /// Form 1.0: the map stands before the content.
    pub(super) before_content: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Offsets and lengths in turn (forms 0.0 and 0.1).
    pub(super) map: Option<Vec<u64>>,
}

impl Pax {
    /// Takes the records of one header over those that it has.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), Fault> {
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ');
            let length = space
                .and_then(|space| number(records.get(..space)?))
                .and_then(|length| usize::try_from(length).ok());
            let parts = space.zip(length).and_then(|(space, length)| {
                let (record, rest) = records.split_at_checked(length)?;
                Some((record.get(space + 1..)?.strip_suffix(b"\n")?, rest))
            });
            let Some((record, rest)) = parts else {
                return Err(damaged("an extended header has a record that is none"));
            };
            let Some(equals) = record.iter().position(|byte| *byte == b'=') else {
                return Err(damaged("an extended header has a record without a value"));
            };
            let (key, value) = (record.get(..equals), record.get(equals + 1..));
            self.record(key.unwrap_or_default(), value.unwrap_or_default())?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let value = base64(value)
                .ok_or_else(|| damaged("an extended attribute's value is not what base64 makes"))?;
            self.xattrs.insert(percent(name), value);
            return Ok(());
        }
        // An empty value takes back what was said before.
        let text = (!value.is_empty()).then(|| value.to_vec());
        let count = |what: &str| match value {
            [] => Ok(None),
            digits => number(digits)
                .map(Some)
                .ok_or_else(|| damaged(format!("the {what} in an extended header is no number"))),
        };
        let id = |what: &str| {
            count(what)?
                .map(|id| u32::try_from(id).map_err(|_| damaged(format!("the {what} {id} is too large"))))
                .transpose()
        };
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.linkpath = text,
            b"size" => self.size = count("size")?,
            b"uid" => self.uid = id("owner")?,
            b"gid" => self.gid = id("group")?,
            b"mtime" => {
                let time = mtime(value).ok_or_else(|| damaged("a time in an extended header is none"));
                self.mtime = if value.is_empty() { None } else { Some(time?) };
            }
            b"GNU.sparse.major" => self.sparse.before_content = value == b"1",
            b"GNU.sparse.name" => self.sparse.name = text,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = count("size of a sparse file")?,
            b"GNU.sparse.numblocks" => {
                self.sparse.map.get_or_insert_default();
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let number = number(value).ok_or_else(|| damaged("the map of a sparse file is none"))?;
                self.sparse.map.get_or_insert_default().push(number);
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|byte| *byte == b',').map(number).collect();
                self.sparse.map = Some(if value.is_empty() {
                    Vec::new()
                } else {
                    numbers.ok_or_else(|| damaged("the map of a sparse file is none"))?
                });
            }
            _ => {}
        }
        Ok(())
    }
}

/// Decimal digits only.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds since 1970, perhaps before, perhaps with a fraction; nanoseconds count upwards from the second below.
fn mtime(text: &[u8]) -> Option<Mtime> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(number(text.get(..point)?)?).ok()?;
    let mut digits = text.get(point + 1..).unwrap_or_default().to_vec();
    digits.resize(9, b'0');
    let nanoseconds = u32::try_from(number(&digits)?).ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Mtime { seconds, nanoseconds },
        (true, 0) => Mtime { seconds: -seconds, nanoseconds },
        (true, _) => Mtime { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Base64 (RFC 4648 §4), with or without its padding: libarchive leaves it out.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let (mut bits, mut held) = (0u32, 0u32);
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for letter in text.iter().filter(|letter| **letter != b'=') {
        let six = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 & 0xff_ffff | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

/// Names with `%41` for bytes that are not plain letters.
fn percent(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, after @ ..] = rest {
        let escaped = (*first == b'%')
            .then(|| {
                std::str::from_utf8(after.get(..2)?).ok().and_then(|two| u8::from_str_radix(two, 16).ok())
            })
            .flatten();
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let mut pax = Pax::default();
        pax.read(b"14 path=a b=c\n22 mtime=-1.500000000\n25 SCHILY.xattr.user.a=\0\n8 uid=7\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a b=c"[..]));
        assert_eq!(pax.mtime, Some(Mtime { seconds: -2, nanoseconds: 500_000_000 }));
        assert_eq!(pax.xattrs[&b"user.a"[..]], b"\0");
        assert_eq!(pax.uid, Some(7));
        pax.read(b"8 path=\n38 LIBARCHIVE.xattr.user.%41=aGVsbG8g\n").unwrap();
        assert_eq!(pax.path, None);
        assert_eq!(pax.xattrs[&b"user.A"[..]], b"hello ");
        for bad in
            [&b"x"[..], b"5 a=b", b"99 path=a\n", b"18446744073709551616 path=a\n", b"9 uid=-1\n", b"4 ab\n"]
        {
            assert!(Pax::default().read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_count_from_the_second_below() {
        let time = |seconds, nanoseconds| Some(Mtime { seconds, nanoseconds });
        for (text, expected) in [
            ("1350244992.023960108", time(1_350_244_992, 23_960_108)),
            ("12.5", time(12, 500_000_000)),
            ("-1", time(-1, 0)),
            ("-0.1", time(-1, 900_000_000)),
            ("1.1234567899", time(1, 123_456_789)),
            (".5", None),
            ("-", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(mtime(text.as_bytes()), expected, "{text}");
        }
    }
}
