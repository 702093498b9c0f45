//! The grammar of `grub.cfg` (GRUB's manual, "Writing full configuration files directly").

use std::rc::Rc;

/// Most levels of braces and conditions in each other.
const DEPTH_MAX: usize = 32;

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    /// A variable; if it is not quoted, its value is several words.
    Variable {
        name: String,
        quoted: bool,
    },
}

/// A word before its variables are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) pieces: Vec<Piece>,
    /// A part of it was quoted: it is a word even if it is empty.
    pub(crate) quoted: bool,
}

impl Word {
    /// The word as it stands, if it has no quotes and no variables.
    fn bare(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }

    fn text(&mut self, c: char) {
        match self.pieces.last_mut() {
            Some(Piece::Text(text)) => text.push(c),
            _ => self.pieces.push(Piece::Text(c.to_string())),
        }
    }
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Command(Vec<Word>),
    /// The branches with their conditions, and what is done else.
    If(Vec<(Vec<Node>, Vec<Node>)>, Vec<Node>),
    /// `menuentry` or `submenu`.
    Menu {
        words: Vec<Word>,
        body: Rc<[Node]>,
        is_sub: bool,
    },
    Function {
        name: String,
        body: Rc<[Node]>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// The end of a command: a line's, or `;`.
    End,
}

/// The words and ends of commands of a text.
fn tokens(text: &str) -> Vec<Token> {
    let mut all = Vec::new();
    let mut word: Option<Word> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | ';' => {
                all.extend(word.take().map(Token::Word));
                all.push(Token::End);
            }
            ' ' | '\t' | '\r' => all.extend(word.take().map(Token::Word)),
            '#' if word.is_none() => while chars.next_if(|c| *c != '\n').is_some() {},
            '{' | '}' if word.is_none() => {
                // A brace is one by itself, also before a `;`.
                all.push(Token::Word(Word { pieces: vec![Piece::Text(c.to_string())], quoted: false }));
            }
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(c) => {
                    let word = word.get_or_insert_default();
                    word.quoted = true;
                    word.text(c);
                }
            },
            '\'' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                while let Some(c) = chars.next_if(|c| *c != '\'') {
                    word.text(c);
                }
                chars.next();
            }
            '"' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                while let Some(c) = chars.next_if(|c| *c != '"') {
                    match c {
                        '\\' => match chars.next() {
                            Some(c @ ('$' | '"' | '\\')) => word.text(c),
                            Some('\n') | None => {}
                            Some(c) => {
                                word.text('\\');
                                word.text(c);
                            }
                        },
                        '$' => variable(&mut chars, word, true),
                        c => word.text(c),
                    }
                }
                chars.next();
            }
            '$' => variable(&mut chars, word.get_or_insert_default(), false),
            c => word.get_or_insert_default().text(c),
        }
    }
    all.extend(word.take().map(Token::Word));
    all.push(Token::End);
    all
}

/// What follows a `$`.
fn variable(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, word: &mut Word, quoted: bool) {
    let braced = chars.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_' || (*c == '?' && !braced)) {
        name.push(c);
    }
    if braced {
        while chars.next_if(|c| !matches!(c, '}' | '\n' | '"')).is_some() {}
        chars.next_if_eq(&'}');
    }
    match name.is_empty() {
        true => word.text('$'),
        false => word.pieces.push(Piece::Variable { name, quoted }),
    }
}

/// Reads a configuration. What is not closed at its end is taken as if it were; what is nested too deep is left out.
pub(crate) fn parse(text: &str) -> Vec<Node> {
    let tokens = tokens(text);
    let mut parser = Parser { tokens: &tokens, depth: 0 };
    let mut nodes = Vec::new();
    while !parser.tokens.is_empty() {
        nodes.extend(parser.block(&[]));
        parser.next(); // a closing word that closes nothing
    }
    nodes
}

struct Parser<'a> {
    tokens: &'a [Token],
    depth: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<&Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    /// The bare word that comes next.
    fn peek(&self) -> Option<&str> {
        match self.tokens.first()? {
            Token::Word(word) => word.bare(),
            Token::End => None,
        }
    }

    /// Statements up to one of these words, which stays.
    fn block(&mut self, ends: &[&str]) -> Vec<Node> {
        let mut nodes = Vec::new();
        while let Some(token) = self.tokens.first() {
            if *token == Token::End {
                self.next();
                continue;
            }
            let word = self.peek().unwrap_or_default().to_string();
            if ends.contains(&word.as_str()) {
                break;
            }
            match word.as_str() {
                // It closes something further out, or nothing.
                "}" | "fi" | "else" | "elif" | "then" | "done" => break,
                "if" => nodes.extend(self.condition()),
                "menuentry" | "submenu" => nodes.extend(self.menu(word == "submenu")),
                "function" => nodes.extend(self.function()),
                _ => nodes.push(Node::Command(self.words())),
            }
        }
        nodes
    }

    /// The words of a command, up to its end or a brace that opens or closes a block.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.tokens.first() {
            if matches!(word.bare(), Some("{" | "}")) && !words.is_empty() {
                break;
            }
            words.push(word.clone());
            self.next();
        }
        words
    }

    /// A block that is one level deeper; none if that is too deep.
    fn deeper(&mut self, ends: &[&str]) -> Option<Vec<Node>> {
        if self.depth >= DEPTH_MAX {
            self.tokens = &[];
            return None;
        }
        self.depth += 1;
        let nodes = self.block(ends);
        self.depth -= 1;
        Some(nodes)
    }

    fn braces(&mut self) -> Option<Vec<Node>> {
        while self.tokens.first() == Some(&Token::End) {
            self.next();
        }
        if self.peek() != Some("{") {
            return Some(Vec::new());
        }
        self.next();
        let body = self.deeper(&["}"])?;
        if self.peek() == Some("}") {
            self.next();
        }
        Some(body)
    }

    fn menu(&mut self, is_sub: bool) -> Option<Node> {
        let mut words = self.words();
        words.remove(0); // `menuentry` itself, which is there
        Some(Node::Menu { words, body: self.braces()?.into(), is_sub })
    }

    fn function(&mut self) -> Option<Node> {
        self.next();
        let name = self.peek().unwrap_or_default().to_string();
        self.next();
        Some(Node::Function { name, body: self.braces()?.into() })
    }

    fn condition(&mut self) -> Option<Node> {
        let (mut branches, mut otherwise) = (Vec::new(), Vec::new());
        loop {
            match self.peek() {
                Some("if" | "elif") => {
                    self.next();
                    let condition = self.deeper(&["then"])?;
                    if self.peek() == Some("then") {
                        self.next();
                    }
                    branches.push((condition, self.deeper(&["elif", "else", "fi"])?));
                }
                Some("else") => {
                    self.next();
                    otherwise = self.deeper(&["fi"])?;
                }
                Some("fi") => {
                    self.next();
                    break;
                }
                _ => break,
            }
        }
        Some(Node::If(branches, otherwise))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_quotes_variables_and_comments() {
        let nodes = parse("set a=\"x $y\"'z \\'\\ b${c}d \\$e # no\n");
        let [Node::Command(words)] = nodes.as_slice() else {
            panic!("one command");
        };
        let text = |text: &str| Piece::Text(text.into());
        let variable = |name: &str, quoted| Piece::Variable { name: name.into(), quoted };
        assert_eq!(
            words[1].pieces,
            [text("a=x "), variable("y", true), text("z \\ b"), variable("c", false), text("d")]
        );
        assert_eq!(words[2].pieces, [text("$e")]);
        assert_eq!(words.len(), 3);
    }

    #[test]
    fn blocks_nest() {
        let nodes = parse(
            "if [ a ]; then\n b\nelif c; then d; else if e; then f; fi; fi\nfunction g { h }\nmenuentry 'i' --id j {\n k\n}",
        );
        let [
            Node::If(branches, otherwise),
            Node::Function { name, body },
            Node::Menu { words, body: entry, is_sub: false },
        ] = nodes.as_slice()
        else {
            panic!("{nodes:#?}");
        };
        assert_eq!((branches.len(), otherwise.len()), (2, 1));
        assert_eq!((name.as_str(), body.len(), words.len(), entry.len()), ("g", 1, 3, 1));
    }

    #[test]
    fn what_is_not_closed_ends_with_the_text() {
        for text in [
            "menuentry",
            "menuentry 'a' {",
            "if",
            "if [ a",
            "if a; then b",
            "function",
            "}",
            "fi; }",
            "${",
            "\"$",
            "\\",
        ] {
            parse(text);
        }
        assert!(parse(&"menuentry a { ".repeat(100_000)).len() <= 1);
        assert!(parse(&"if ".repeat(100_000)).len() <= 1);
    }
}
