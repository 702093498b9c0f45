//! What a guest is called by itself.
use crate::{Fault, Kind};

/// The word of the kernel's command line that tells the agent: `viv.hostname=NAME`. The last one counts.
pub const HOSTNAME_PARAMETER: &str = "viv.hostname";
/// Most bytes that Linux lets it have (hostname(7)).
const LEN_MAX: usize = 64;

/// A guest's name as a word of the command line.
pub fn hostname_word(name: &str) -> String {
    format!("{HOSTNAME_PARAMETER}={name}")
}

/// The name that a word of the command line gives the guest, if it does that.
pub fn hostname_of(word: &str) -> Option<&str> {
    word.split_once('=').filter(|(parameter, _)| *parameter == HOSTNAME_PARAMETER).map(|(_, name)| name)
}

/// The name that a command line gives the guest, if it says one.
pub fn hostname_in(line: &str) -> Option<&str> {
    line.split_ascii_whitespace().filter_map(hostname_of).next_back().filter(|name| !name.is_empty())
}

/// A command line without what names the guest, if there is anything else.
pub fn without_hostname(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split(' ').filter(|word| hostname_of(word).is_none()).collect();
    Some(words.join(" ")).filter(|words| !words.trim().is_empty())
}

/// Checks a name that somebody wants a guest to have: labels of letters, digits and `-`, with dots between them (RFC 1123 §2.1).
pub fn check_hostname(name: &str) -> Result<(), Fault> {
    let fits = |label: &str| {
        let is_sign = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(is_sign) && !label.starts_with('-') && !label.ends_with('-')
    };
    if name.len() <= LEN_MAX && name.split('.').all(fits) {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Usage,
        format!("a guest cannot be called {name:?}"),
        format!(
            "use at most {LEN_MAX} letters, digits and '-', with dots between parts: --hostname db.example"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_names_the_guest() {
        let line = format!("quiet {} ro {}", hostname_word("web"), hostname_word("db.example"));
        assert_eq!(hostname_in(&line), Some("db.example"));
        assert_eq!(hostname_in("quiet viv.hostnames=x"), None);
        assert_eq!(hostname_in("viv.hostname="), None);
        assert_eq!(without_hostname(&line).as_deref(), Some("quiet ro"));
        assert_eq!(without_hostname("viv.hostname=a"), None);
    }

    #[test]
    fn names_are_checked() {
        for name in ["a", "db-1.example.org", "my_host"] {
            check_hostname(name).unwrap();
        }
        for name in ["", ".", "a..b", "-a", "a-", "a b", "ü", "a=b", &"a".repeat(65)] {
            assert!(check_hostname(name).is_err(), "{name}");
        }
    }
}
