//! Whole sessions at a terminal: what is typed, what guests write, what is shown. The dispatcher,
//! the commands, the table of VMs and the scheduler are the real ones; the VMs have no
//! processor.

mod answers;
mod door;
mod fuzz;
mod host;
mod jobs;
mod life_cycle;
mod parsing;
mod terminal;
mod watch;
