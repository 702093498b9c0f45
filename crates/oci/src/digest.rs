//! Content by its digest (OCI image specification, descriptor.md "Digests").
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use viv_model::{Fault, Kind};

/// A SHA-256 digest. Registries know others; nobody uses them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(hex(&Sha256::digest(bytes)))
    }

    /// Its 64 hexadecimal digits, lower case.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl FromStr for Digest {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Digest, Fault> {
        let digits = text.strip_prefix("sha256:").filter(|digits| {
            digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        });
        digits.map(|digits| Digest(digits.to_string())).ok_or_else(|| {
            let text: String = text.chars().take(100).collect();
            Fault::new(
                Kind::Usage,
                format!("{text:?} is no digest that can be checked"),
                "a digest is sha256: and 64 digits of 0-9 and a-f",
            )
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A stream whose bytes are summed as they pass. At the end of the stream the sum must be right: else the last read is an error.
pub struct Checked<R> {
    inner: R,
    sum: Option<Sha256>,
    wanted: Digest,
    left: u64,
}

impl<R: Read> Checked<R> {
    /// `inner` is to have `bytes` bytes of this digest.
    pub fn new(inner: R, wanted: Digest, bytes: u64) -> Checked<R> {
        Checked { inner, sum: Some(Sha256::new()), wanted, left: bytes }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(buffer)?;
        let length = read as u64;
        let damaged = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if length > self.left {
            return damaged(format!("it is longer than its manifest says ({})", self.wanted));
        }
        self.left -= length;
        let Some(sum) = &mut self.sum else { return Ok(0) };
        sum.update(buffer.get(..read).unwrap_or_default());
        if read == 0 {
            if self.left > 0 {
                return damaged(format!("{} bytes of it are missing ({})", self.left, self.wanted));
            }
            let found = self.sum.take().map(|sum| hex(&sum.finalize())).unwrap_or_default();
            if found != self.wanted.hex() {
                return damaged(format!(
                    "its content is not what its digest says: sha256:{found}, not {}",
                    self.wanted
                ));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_of_one_form() {
        let digest = Digest::of(b"");
        assert_eq!(
            digest.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for wrong in ["", "sha256:", "md5:00", "sha256:../../x", &digest.to_string().to_uppercase()] {
            assert_eq!(wrong.parse::<Digest>().unwrap_err().kind, Kind::Usage, "{wrong}");
        }
    }

    #[test]
    fn a_stream_is_what_its_digest_says_or_its_end_is_an_error() {
        let read = |bytes: &[u8], digest: Digest, length| {
            let mut out = Vec::new();
            Checked::new(bytes, digest, length).read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(read(b"abc", Digest::of(b"abc"), 3).unwrap(), b"abc");
        assert!(read(b"abd", Digest::of(b"abc"), 3).unwrap_err().to_string().contains("not what its digest"));
        assert!(read(b"ab", Digest::of(b"abc"), 3).unwrap_err().to_string().contains("missing"));
        assert!(read(b"abcd", Digest::of(b"abc"), 3).unwrap_err().to_string().contains("longer"));
    }
}
