//! Rules of the code that neither the compiler nor clippy knows.

mod modules;
mod unsafe_code;
