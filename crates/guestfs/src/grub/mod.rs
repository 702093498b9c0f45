//! GRUB's configuration, executed as far as it takes to know what would be booted: variables, conditions, menus,
//! `search`, `load_env`, `blscfg`. Commands that draw, wait, load modules or write do nothing.
mod parse;
mod test;

use crate::bls;
use crate::boot::Boot;
use crate::volume::Volume;
use parse::{Node, Piece, Word};
use std::collections::HashMap;
use std::rc::Rc;

/// Most commands that are executed.
const STEPS_MAX: usize = 20_000;
/// Most files and functions that call each other.
const DEPTH_MAX: usize = 8;
/// Most entries of a menu, and bytes of a value.
const ENTRIES_MAX: usize = 1000;
const VALUE_MAX: usize = 64 << 10;
/// Most bytes of a command's words.
const COMMAND_MAX: usize = 256 << 10;
/// What GRUB on a PC says of itself.
const VARIABLES: &[(&str, &str)] = &[
    ("grub_platform", "pc"),
    ("grub_cpu", "i386"),
    ("feature_menuentry_id", "y"),
    ("feature_menuentry_options", "y"),
    ("feature_default_font_path", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_all_video_module", "y"),
    ("feature_timeout_style", "y"),
    ("feature_200_final", "y"),
    ("feature_chainloader_bpb", "y"),
    ("feature_ntldr", "y"),
    ("feature_nativedisk_cmd", "y"),
];

/// An entry of a menu.
#[derive(Clone, Debug)]
enum Item {
    Script {
        title: String,
        id: String,
        body: Rc<[Node]>,
        is_sub: bool,
    },
    /// An entry of the Boot Loader Specification, and where it lies.
    Bls(Box<bls::Entry>, usize),
}

impl Item {
    fn is_called(&self, name: &str) -> bool {
        match self {
            Item::Script { title, id, .. } => title == name || id == name,
            Item::Bls(entry, _) => entry.id == name || entry.title == name,
        }
    }
}

/// What an entry boots.
#[derive(Debug, Default)]
struct Loaded {
    kernel: Option<(usize, String, String)>,
    initrds: Vec<String>,
}

/// What `configuration` on a volume would boot; none if it would boot no Linux.
pub(crate) fn boot(volumes: &[Volume], volume: usize, configuration: &str) -> Option<Boot> {
    let mut shell = Shell::new(volumes, volume, configuration);
    shell.file(&format!("{}{configuration}", device(volumes, volume)));
    let default = shell.value("default");
    let items = std::mem::take(&mut shell.items);
    shell.choose(&items, &default)
}

/// GRUB's name of a volume.
fn device(volumes: &[Volume], volume: usize) -> String {
    match volumes.get(volume).and_then(|volume| volume.partition.number) {
        Some(number) => format!("(hd0,{number})"),
        None => "(hd0)".to_string(),
    }
}

struct Shell<'a> {
    volumes: &'a [Volume],
    variables: HashMap<String, String>,
    functions: HashMap<String, Rc<[Node]>>,
    items: Vec<Item>,
    loaded: Loaded,
    steps: usize,
    depth: usize,
}

impl<'a> Shell<'a> {
    fn new(volumes: &'a [Volume], volume: usize, configuration: &str) -> Shell<'a> {
        let directory = configuration.rsplit_once('/').map_or("", |(directory, _)| directory);
        let place = format!("{}{directory}", device(volumes, volume));
        let root = device(volumes, volume).trim_matches(['(', ')']).to_string();
        let fixed = VARIABLES.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let own = [("prefix", &place), ("config_directory", &place), ("root", &root)];
        let own = own.into_iter().map(|(name, value)| (name.to_string(), value.clone()));
        Shell {
            volumes,
            variables: fixed.chain(own).collect(),
            functions: HashMap::new(),
            items: Vec::new(),
            loaded: Loaded::default(),
            steps: 0,
            depth: 0,
        }
    }

    fn value(&self, name: &str) -> String {
        self.variables.get(name).cloned().unwrap_or_default()
    }

    fn set(&mut self, name: &str, value: &str) {
        if value.len() <= VALUE_MAX && name.len() <= VALUE_MAX && self.variables.len() < ENTRIES_MAX {
            self.variables.insert(name.to_string(), value.to_string());
        }
    }

    /// The volume and the path on it that are meant: `(hd0,gpt1)/boot`, or `/boot` on the root.
    fn place(&self, path: &str) -> Option<(usize, String)> {
        let root = self.value("root");
        let (device, path) = match path.strip_prefix('(') {
            Some(rest) => rest.split_once(')')?,
            None => (root.as_str(), path),
        };
        Some((self.volume(device)?, path.to_string()))
    }

    /// The volume that GRUB calls so: `hd0,gpt1`, `hd0,msdos1`, `hd0,1`.
    fn volume(&self, device: &str) -> Option<usize> {
        let number = match device.split_once(',') {
            Some((_, part)) => Some(part.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse().ok()?),
            None => None,
        };
        self.volumes.iter().position(|volume| volume.partition.number == number)
    }

    /// Executes a file; false if it is not there.
    fn file(&mut self, path: &str) -> bool {
        let Some((volume, path)) = self.place(path) else { return false };
        let text = self.volumes.get(volume).and_then(|volume| volume.text(&path).ok());
        let Some(text) = text.filter(|_| self.depth < DEPTH_MAX) else { return false };
        self.depth += 1;
        self.run(&parse::parse(&text));
        self.depth -= 1;
        true
    }

    /// Executes statements; gives what the last one came to.
    fn run(&mut self, nodes: &[Node]) -> bool {
        let mut status = true;
        for node in nodes {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return false;
            }
            match node {
                Node::Command(words) => status = self.command(words),
                Node::If(branches, otherwise) => {
                    let taken = branches.iter().find(|(condition, _)| self.run(condition));
                    status = self.run(taken.map_or(otherwise, |(_, body)| body));
                }
                Node::Menu { words, body, is_sub } => self.menu(words, body, *is_sub),
                Node::Function { name, body } => {
                    if self.functions.len() < ENTRIES_MAX {
                        self.functions.insert(name.clone(), body.clone());
                    }
                }
            }
        }
        status
    }

    /// The words of a command, with the values of their variables.
    fn expand(&self, words: &[Word]) -> Vec<String> {
        let mut all = Vec::new();
        let mut room = COMMAND_MAX;
        for word in words {
            let (mut text, mut is_word) = (String::new(), word.quoted);
            for piece in &word.pieces {
                room = room.saturating_sub(match piece {
                    Piece::Text(piece) => piece.len(),
                    Piece::Variable { name, .. } => self.variables.get(name).map_or(1, String::len),
                });
                if room == 0 {
                    return all;
                }
                match piece {
                    Piece::Text(piece) => text.push_str(piece),
                    Piece::Variable { name, quoted: true } => text.push_str(&self.value(name)),
                    Piece::Variable { name, quoted: false } => {
                        let value = self.value(name);
                        let mut parts = value.split_ascii_whitespace().peekable();
                        while let Some(part) = parts.next() {
                            text.push_str(part);
                            if parts.peek().is_some() {
                                all.push(std::mem::take(&mut text));
                            }
                        }
                    }
                }
            }
            is_word |= !text.is_empty();
            if is_word {
                all.push(text);
            }
        }
        all
    }

    fn menu(&mut self, words: &[Word], body: &Rc<[Node]>, is_sub: bool) {
        let words = self.expand(words);
        let after = |at: usize| words.get(at + 1).cloned();
        let id = words.iter().position(|word| word == "--id").and_then(after);
        let id = id.or_else(|| words.iter().find_map(|word| word.strip_prefix("--id=").map(str::to_string)));
        let item = Item::Script {
            title: words.first().cloned().unwrap_or_default(),
            id: id.unwrap_or_default(),
            body: body.clone(),
            is_sub,
        };
        if self.items.len() < ENTRIES_MAX {
            self.items.push(item);
        }
    }

    fn command(&mut self, words: &[Word]) -> bool {
        let words = self.expand(words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((&name, arguments)) = words.split_first() else { return true };
        match name {
            "[" => test::holds(arguments.strip_suffix(&["]"]).unwrap_or(arguments), &|path| self.size(path)),
            "test" => test::holds(arguments, &|path| self.size(path)),
            "!" => !self.command_again(arguments),
            "true" | "insmod" | "export" | "echo" | "save_env" | "terminal_output" | "terminal_input" => true,
            "set" => {
                arguments
                    .iter()
                    .filter_map(|word| word.split_once('='))
                    .for_each(|(name, value)| self.set(name, value));
                true
            }
            "unset" => {
                arguments.iter().for_each(|name| drop(self.variables.remove(*name)));
                true
            }
            "load_env" => self.load_env(arguments),
            "search" => self.search(arguments),
            "search.fs_uuid" | "search.fs_label" | "search.file" => {
                let [what, rest @ ..] = arguments else { return false };
                let by = name.trim_start_matches("search.").replace("fs_label", "label").replace('_', "-");
                self.found(&by, what, rest.first().copied().unwrap_or("root"))
            }
            "configfile" | "source" | "." => arguments.first().is_some_and(|path| self.file(path)),
            "linux" | "linux16" | "linuxefi" => self.linux(arguments),
            "initrd" | "initrd16" | "initrdefi" => {
                self.loaded.initrds.extend(arguments.iter().map(|path| path.to_string()));
                true
            }
            "blscfg" => self.bls(),
            name => match (name.split_once('='), self.functions.get(name).cloned()) {
                (Some((name, value)), _) => {
                    let value = value.to_string();
                    self.set(name, &value);
                    true
                }
                (None, Some(body)) if self.depth < DEPTH_MAX => {
                    self.depth += 1;
                    let status = self.run(&body);
                    self.depth -= 1;
                    status
                }
                _ => false,
            },
        }
    }

    /// A command whose words have their values already.
    fn command_again(&mut self, words: &[&str]) -> bool {
        let quoted = |word: &&str| Word { pieces: vec![Piece::Text(word.to_string())], quoted: true };
        self.steps += 1;
        self.steps <= STEPS_MAX && self.command(&words.iter().map(quoted).collect::<Vec<_>>())
    }

    /// The size of a file, none for a directory; nothing if neither is there.
    fn size(&self, path: &str) -> Option<Option<u64>> {
        let (volume, path) = self.place(path)?;
        let volume = self.volumes.get(volume)?;
        volume.size(&path).ok().map(Some).or_else(|| volume.is_dir(&path).then_some(None))
    }

    /// Takes over what GRUB has kept: lines of `name=value` (GRUB's manual, "The GRUB environment block").
    fn load_env(&mut self, arguments: &[&str]) -> bool {
        let mut path = format!("{}/grubenv", self.value("prefix"));
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match *word {
                "-f" | "--file" => path = words.next().map_or(path, |path| path.to_string()),
                word => path = word.strip_prefix("--file=").map_or(path, str::to_string),
            }
        }
        let Some((volume, path)) = self.place(&path) else { return false };
        let text = self.volumes.get(volume).and_then(|volume| volume.text(&path).ok());
        for (name, value) in text.iter().flat_map(|text| text.lines()).filter_map(|line| line.split_once('='))
        {
            // GRUB takes what is to be booted once out of the file, which is only read here: it would stay for ever.
            if name != "next_entry" && !name.starts_with('#') {
                self.set(name, value);
            }
        }
        text.is_some()
    }

    /// `search --fs-uuid --set=root UUID`, in its many forms.
    fn search(&mut self, arguments: &[&str]) -> bool {
        let (mut by, mut variable, mut what) = ("fs-uuid", "root", None);
        let mut words = arguments.iter().copied().peekable();
        while let Some(word) = words.next() {
            match word {
                "-u" | "--fs-uuid" => by = "fs-uuid",
                "-l" | "--label" | "--fs-label" => by = "label",
                "-f" | "--file" => by = "file",
                "-s" | "--set" => variable = words.next().unwrap_or("root"),
                "--hint" => drop(words.next()),
                word if word.starts_with("--set=") => variable = word.trim_start_matches("--set="),
                word if word.starts_with('-') => {}
                word => what = Some(word),
            }
        }
        let (by, variable) = (by.to_string(), variable.to_string());
        what.is_some_and(|what| self.found(&by, what, &variable))
    }

    fn found(&mut self, by: &str, what: &str, variable: &str) -> bool {
        let is_it = |volume: &Volume| match by {
            "fs-uuid" => volume.uuid.eq_ignore_ascii_case(what),
            "label" => volume.label == what,
            _ => volume.is_file(what),
        };
        let Some(index) = self.volumes.iter().position(is_it) else { return false };
        let device = device(self.volumes, index);
        self.set(variable, device.trim_matches(['(', ')']));
        true
    }

    fn linux(&mut self, arguments: &[&str]) -> bool {
        let Some((path, words)) = arguments.split_first() else { return false };
        let Some((volume, path)) = self.place(path) else { return false };
        self.loaded = Loaded { kernel: Some((volume, path, words.join(" "))), initrds: Vec::new() };
        true
    }

    /// Adds the entries of the Boot Loader Specification that are on the root.
    fn bls(&mut self) -> bool {
        let Some((index, _)) = self.place("/") else { return false };
        let Some(volume) = self.volumes.get(index) else { return false };
        let entries =
            ["/loader/entries", "/boot/loader/entries"].map(|directory| bls::entries(volume, directory));
        let items = entries.into_iter().flatten().map(|entry| Item::Bls(Box::new(entry), index));
        self.items.extend(items);
        self.items.truncate(ENTRIES_MAX);
        true
    }

    /// Boots the entry that `path` names (`2`, `id`, `submenu>entry`), or the first.
    fn choose(&mut self, items: &[Item], path: &str) -> Option<Boot> {
        let (name, rest) = path.split_once('>').unwrap_or((path, ""));
        let by_number = name.parse().ok().and_then(|index: usize| items.get(index));
        let item =
            by_number.or_else(|| items.iter().find(|item| item.is_called(name))).or_else(|| items.first())?;
        match item {
            Item::Bls(entry, volume) => {
                Some(Boot::of_entry(entry, *volume, &|name| self.variables.get(name).cloned()))
            }
            Item::Script { body, is_sub: true, .. } => {
                self.run(body);
                let items = std::mem::take(&mut self.items);
                if self.depth >= DEPTH_MAX {
                    return None;
                }
                self.depth += 1;
                self.choose(&items, rest)
            }
            Item::Script { title, body, .. } => {
                self.run(body);
                let (volume, kernel, append) = self.loaded.kernel.take()?;
                let place = |path: &String| {
                    self.place(path).filter(|(place, _)| *place == volume).map(|(_, path)| path)
                };
                let initrds = self.loaded.initrds.iter().filter_map(place).collect();
                Some(Boot {
                    volume,
                    kernel,
                    initrds,
                    append,
                    title: title.clone(),
                    from: "GRUB's menu".to_string(),
                })
            }
        }
    }
}

/// Executes any text, with no disk below it.
#[cfg(feature = "trial")]
pub(crate) fn trial(text: &str) {
    let mut shell = Shell::new(&[], 0, "/boot/grub/grub.cfg");
    shell.run(&parse::parse(text));
    let default = shell.value("default");
    let items = std::mem::take(&mut shell.items);
    let _ = shell.choose(&items, &default);
}
