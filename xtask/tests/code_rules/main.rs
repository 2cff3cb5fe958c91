//! Rules of the code that neither the compiler nor clippy knows.

mod doc_comments;
mod modules;
mod unsafe_code;
