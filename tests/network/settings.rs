//! What docs/networks.md tells administrators to write, as the tests run it.
//!
//! A block of settings there begins with a comment that names it. A test takes it by that name, puts in the addresses and paths of its own, and runs
//! the program with it: so what is advised is what was tested. Law: nothing is put in that does not stand there.

/// The document.
const DOCUMENT: &str = include_str!("../../docs/networks.md");

/// A block of the document, with what a test has put in.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    text: String,
}

impl Settings {
    /// The block of that name.
    #[track_caller]
    pub(crate) fn of(name: &str) -> Self {
        let found = blocks().into_iter().find(|(known, _)| known == name);
        let (_, text) = found.unwrap_or_else(|| panic!("docs/networks.md has no settings called {name:?}"));
        Self { text }
    }

    /// Puts `here` wherever the document has `there`.
    #[track_caller]
    pub(crate) fn put(mut self, there: &str, here: impl std::fmt::Display) -> Self {
        assert!(self.text.contains(there), "{there:?} is not in the settings:\n{}", self.text);
        self.text = self.text.replace(there, &here.to_string());
        self
    }

    /// Leaves out the lines that hold this, as an administrator does who has not read the document.
    #[track_caller]
    pub(crate) fn without(mut self, words: &str) -> Self {
        assert!(self.text.contains(words), "{words:?} is not in the settings:\n{}", self.text);
        let left = self.text.lines().filter(|line| !line.contains(words));
        self.text = left.flat_map(|line| [line, "\n"]).collect();
        self
    }

    /// The whole.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// Every block that has a name, with its lines.
fn blocks() -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    // Behind each odd fence is a block, that begins with its language.
    for block in DOCUMENT.split("\n```").skip(1).step_by(2) {
        let text = block.split_once('\n').unwrap().1;
        if let Some(name) = text.lines().next().and_then(|line| line.strip_prefix("# ")) {
            blocks.push((name.to_owned(), format!("{text}\n")));
        }
    }
    blocks
}

#[test]
fn every_block_of_the_document_has_a_test() {
    let tests = [
        include_str!("reverse.rs"),
        include_str!("balancing.rs"),
        include_str!("introduction.rs"),
        include_str!("idling.rs"),
        include_str!("forward.rs"),
        include_str!("agent.rs"),
    ];
    for (name, _) in blocks() {
        let quoted = format!("\"{name}\"");
        assert!(tests.iter().any(|test| test.contains(&quoted)), "no test runs the settings {name:?}");
    }
    assert!(blocks().len() >= 5, "{:?}", blocks());
}
