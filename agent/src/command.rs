//! From a request to a program that can be started: user, environment, directory, and where the program is.
use crate::exec::default_env;
use crate::root;
use crate::users::User;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use viv_api::agent::{Exec, STATUS_NOT_EXECUTABLE, STATUS_NOT_FOUND};

/// Everything that is known before the process exists.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) program: PathBuf,
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user: User,
    pub(crate) cwd: String,
}

/// Why a program was not started: status and one line.
pub(crate) type Refusal = (u8, String);

/// Looks everything up, so that each failure has its own words.
pub(crate) fn prepare(exec: &Exec) -> Result<Prepared, Refusal> {
    let cannot = |message: String| (STATUS_NOT_EXECUTABLE, message);
    let Some((name, args)) = exec.argv.split_first().filter(|(name, _)| !name.is_empty()) else {
        return Err(cannot("no command was given".into()));
    };
    let words = exec.argv.iter().chain(exec.env.iter().flat_map(|(name, value)| [name, value]));
    if words.chain(&exec.cwd).any(|word| word.contains('\0')) {
        return Err(cannot(format!("{name:?}: a zero byte in an argument")));
    }
    let user = match &exec.user {
        Some(text) => User::find(text).map_err(cannot)?,
        None => User::find("root").unwrap_or_else(|_| User::root()),
    };
    let mut env: BTreeMap<String, String> = default_env(&user).collect();
    if root::is_apart()
        && let Ok(name) = fs::read_to_string("/proc/sys/kernel/hostname")
    {
        env.insert("HOSTNAME".into(), name.trim_end().to_string());
    }
    if exec.tty {
        env.insert("TERM".into(), "xterm-256color".into());
    }
    // A name that is empty or has a `=` is none.
    let named = exec.env.iter().filter(|(name, _)| !name.is_empty() && !name.contains('='));
    env.extend(named.cloned());
    if let Some(cwd) = exec.cwd.as_ref().filter(|_| root::is_apart()) {
        // As docker does: an image may name a directory that it does not have.
        let _ = fs::create_dir_all(cwd);
    }
    let cwd = match &exec.cwd {
        Some(cwd) if !Path::new(cwd).is_dir() => {
            return Err(cannot(format!("the guest has no directory {cwd:?}")));
        }
        Some(cwd) => cwd.clone(),
        None if Path::new(&user.home).is_dir() => user.home.clone(),
        None => "/".to_string(),
    };
    let path = env.get("PATH").map(String::as_str).unwrap_or_default();
    let program = find(name, path, &cwd)?;
    Ok(Prepared { program, name: name.clone(), args: args.to_vec(), env, user, cwd })
}

/// Finds `name` as a shell would.
fn find(name: &str, path: &str, cwd: &str) -> Result<PathBuf, Refusal> {
    let mut refused = (STATUS_NOT_FOUND, format!("{name}: not found"));
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![Path::new(cwd).join(name)]
    } else {
        path.split(':').map(|place| Path::new(cwd).join(place).join(name)).collect()
    };
    for candidate in candidates {
        match fs::metadata(&candidate) {
            Ok(found) if found.is_dir() => {
                refused = (STATUS_NOT_EXECUTABLE, format!("{name}: is a directory"));
            }
            Ok(found) if found.permissions().mode() & 0o111 == 0 => {
                refused = (STATUS_NOT_EXECUTABLE, format!("{name}: permission denied"));
            }
            Ok(_) => return Ok(candidate),
            Err(_) => {}
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_found_as_a_shell_finds_it() {
        assert!(find("sh", "/nowhere:/bin", "/").is_ok());
        assert_eq!(find("./sh", "", "/bin").unwrap(), Path::new("/bin/./sh"));
        assert_eq!(find("nosuchcommand", "/bin", "/").unwrap_err().0, 127);
        assert_eq!(find("/etc", "/bin", "/").unwrap_err().0, 126);
        assert_eq!(find("/etc/passwd", "/bin", "/").unwrap_err().0, 126);
    }

    #[test]
    fn a_request_without_sense_is_refused_with_words() {
        for argv in [vec![], vec![""], vec!["sh", "a\0b"]] {
            let (status, message) = prepare(&Exec::new(argv)).unwrap_err();
            assert_eq!(status, 126);
            assert!(!message.is_empty());
        }
        let mut exec = Exec::new(["sh"]);
        exec.cwd = Some("/no/such/place".into());
        assert!(prepare(&exec).unwrap_err().1.contains("/no/such/place"));
    }

    #[test]
    fn the_clients_environment_wins() {
        let mut exec = Exec::new(["sh"]);
        exec.env = vec![("TERM".into(), "dumb".into()), ("A=B".into(), "x".into())];
        exec.tty = true;
        let prepared = prepare(&exec).unwrap();
        assert_eq!(prepared.env["TERM"], "dumb");
        assert!(!prepared.env.contains_key("A=B"));
        assert_eq!(prepared.env["PATH"], crate::exec::DEFAULT_PATH);
    }
}
