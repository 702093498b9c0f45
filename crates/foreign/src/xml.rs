//! XML from strangers: bounded, and without document types, so that no entity is ever expanded.
use crate::fault::damaged;
use roxmltree::{Document, Node, ParsingOptions};
use viv_model::Fault;

/// Most bytes of a description.
pub(crate) const TEXT_MAX: u64 = 4 << 20;
/// Most nodes of one.
const NODES_MAX: u32 = 200_000;
/// Deepest nesting of one.
const DEPTH_MAX: usize = 100;

/// Parses a document; `what` is its name for a person.
pub(crate) fn parse<'a>(text: &'a str, what: &str) -> Result<Document<'a>, Fault> {
    let text = text.trim_start_matches('\u{feff}');
    if is_deep(text) {
        return Err(damaged(what, format!("its elements are nested more than {DEPTH_MAX} deep")));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|error| damaged(what, error))
}

/// Whether more elements are open at one place than any description has; told from the text, before it is parsed.
fn is_deep(text: &str) -> bool {
    let (mut depth, mut rest) = (0usize, text);
    while let Some((_, behind)) = rest.split_once('<') {
        let skipped = [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>"), ("!", ">")];
        if let Some((_, end)) = skipped.iter().find(|(begin, _)| behind.starts_with(begin)) {
            let Some((_, after)) = behind.split_once(end) else { return false };
            rest = after;
            continue;
        }
        // What is in quotes is no end.
        let mut quote = None;
        let end = behind.find(|c| match (quote, c) {
            (None, '>') => true,
            (None, '"' | '\'') => {
                quote = Some(c);
                false
            }
            (Some(begun), c) if begun == c => {
                quote = None;
                false
            }
            _ => false,
        });
        let Some((tag, after)) = end.and_then(|end| Some((behind.get(..end)?, behind.get(end + 1..)?)))
        else {
            return false;
        };
        if tag.starts_with('/') {
            depth = depth.saturating_sub(1);
        } else if !tag.ends_with('/') {
            depth += 1;
        }
        if depth > DEPTH_MAX {
            return true;
        }
        rest = after;
    }
    false
}

/// The children of this name, in whatever namespace.
pub(crate) fn children<'a, 'i>(
    node: Node<'a, 'i>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> + use<'a, 'i> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

/// The first child of this name.
pub(crate) fn child<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> Option<Node<'a, 'i>> {
    children(node, name).next()
}

/// The text of the first child of this name, unless it is empty.
pub(crate) fn text<'a>(node: Node<'a, '_>, name: &'static str) -> Option<&'a str> {
    child(node, name)?.text().map(str::trim).filter(|text| !text.is_empty())
}

/// An attribute, in whatever namespace.
pub(crate) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bombs_are_refused() {
        let laughs = "<!DOCTYPE l [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;'>]><l>&b;</l>";
        assert!(parse(laughs, "x").unwrap_err().message.contains("DTD"));
        let file = "<!DOCTYPE l [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><l>&a;</l>";
        assert!(parse(file, "x").is_err());
        let deep = "<a>".repeat(1_000_000);
        assert!(parse(&deep, "x").unwrap_err().message.contains("nested"));
        let wide = format!("<a>{}</a>", "<b/>".repeat(250_000));
        assert!(parse(&wide, "x").is_err());
        let html = format!(
            "\u{feff}<a><!-- {0} --><![CDATA[{0}]]>{1}</a>",
            "<p>".repeat(200),
            "<b c='>'/>".repeat(200)
        );
        assert!(parse(&html, "x").is_ok());
        assert!(parse(&"<!".repeat(1 << 20), "x").is_err());
        assert!(parse("", "x").is_err());
    }
}
