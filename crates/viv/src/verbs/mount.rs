//! `--mount`, as tools of containers write what `-v` and `--tmpfs` say shorter.
use std::str::FromStr;
use viv_model::{Fault, Kind, TmpfsMount, check_volume_name};

/// What one of them asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mount {
    /// A directory or a volume, as `-v` has it.
    Share(String),
    /// A directory in the guest's memory.
    Memory(TmpfsMount),
}

fn wrong(text: &str, why: &str) -> Fault {
    Fault::new(
        Kind::Usage,
        format!("cannot mount {text:?}: {why}"),
        "write --mount type=bind,source=DIR,target=PATH,readonly, type=volume,source=NAME,target=PATH or type=tmpfs,target=PATH,tmpfs-size=64m",
    )
}

impl FromStr for Mount {
    type Err = Fault;
    /// `KEY=VALUE,…` (docker-run(1), "--mount").
    fn from_str(text: &str) -> Result<Mount, Fault> {
        let (mut kind, mut source, mut target, mut read_only) = ("volume", "", "", false);
        let mut options = Vec::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "type" => kind = value,
                "source" | "src" => source = value,
                "target" | "destination" | "dst" => target = value,
                "readonly" | "ro" => match value {
                    "" | "true" | "1" => read_only = true,
                    "false" | "0" => read_only = false,
                    _ => return Err(wrong(text, &format!("{key} is true or false, not {value:?}"))),
                },
                "tmpfs-size" => options.push(format!("size={value}")),
                "tmpfs-mode" => options.push(format!("mode={value}")),
                _ => return Err(wrong(text, &format!("it has nothing that is called {key:?}"))),
            }
        }
        if target.is_empty() {
            return Err(wrong(text, "it has no target"));
        }
        if kind != "tmpfs" && !options.is_empty() {
            return Err(wrong(text, "only a tmpfs has a size and a mode"));
        }
        let access = if read_only { ":ro" } else { "" };
        match kind {
            "tmpfs" if !source.is_empty() => Err(wrong(text, "a tmpfs has no source")),
            "tmpfs" => {
                options.extend(read_only.then(|| "ro".to_string()));
                format!("{target}:{}", options.join(",")).parse().map(Mount::Memory)
            }
            "bind" if source.is_empty() => Err(wrong(text, "a directory of the host has a source")),
            // A directory here and no volume, whatever it is called.
            "bind" if !source.contains('/') => Ok(Mount::Share(format!("./{source}:{target}{access}"))),
            "bind" => Ok(Mount::Share(format!("{source}:{target}{access}"))),
            "volume" if source.is_empty() && read_only => {
                Err(wrong(text, "a new volume is for writing to it"))
            }
            "volume" if source.is_empty() => Ok(Mount::Share(target.to_string())),
            "volume" => {
                check_volume_name(source)?;
                Ok(Mount::Share(format!("{source}:{target}{access}")))
            }
            _ => Err(wrong(text, &format!("its type is bind, volume or tmpfs, not {kind:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_what_shorter_options_say() {
        for (text, short) in [
            ("type=bind,source=/srv,target=/data", "/srv:/data"),
            ("type=bind,src=srv,dst=/data,readonly", "./srv:/data:ro"),
            ("type=bind,src=./a/b,destination=/data,ro=false", "./a/b:/data"),
            ("source=pg,target=/data,ro=true", "pg:/data:ro"),
            ("type=volume,target=/data", "/data"),
        ] {
            assert_eq!(text.parse::<Mount>().unwrap(), Mount::Share(short.into()), "{text}");
        }
        let memory =
            "type=tmpfs,target=/tmp,tmpfs-size=64m,tmpfs-mode=700,readonly".parse::<Mount>().unwrap();
        assert_eq!(memory, Mount::Memory("/tmp:size=64m,mode=700,ro".parse().unwrap()));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, why) in [
            ("type=bind,source=/srv", "no target"),
            ("type=bind,target=/data", "has a source"),
            ("type=npipe,source=a,target=/data", "npipe"),
            ("type=bind,source=/a,target=/b,bind-propagation=shared", "bind-propagation"),
            ("type=tmpfs,source=a,target=/b", "no source"),
            ("type=tmpfs,target=/b,tmpfs-size=", "size="),
            ("type=volume,source=/a,target=/b", "/a"),
            ("source=a,target=/b,ro=perhaps", "perhaps"),
            ("source=a,target=/b,tmpfs-mode=700", "only a tmpfs"),
            ("target=/b,ro", "new volume"),
            ("", "called \"\""),
        ] {
            let fault = text.parse::<Mount>().unwrap_err();
            assert!(fault.to_string().contains(why), "{text}: {fault}");
        }
    }
}
