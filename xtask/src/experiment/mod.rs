//! Experiments: what tarpit does to a real guest, measured from outside.
//!
//! An experiment is a module with `Options`, a [`clap::Args`] whose doc comment is the command's
//! help, and `run`, which prints what came out, writes it to `target/experiments` and tells whether
//! the requirements were met. To add one, write the module, and put it into the list below.
//! (`baseline`, `bench` and `nested` are commands of their own: they have no requirements of the
//! paper's.)

use anyhow::Result;
use clap::Subcommand;

pub mod attack;
pub mod baseline;
pub mod behaviors;
pub mod bench;
pub mod bystanders;
pub mod common;
pub mod disks;
pub mod evasion;
mod exits;
pub mod figure1;
pub mod fuzz;
pub mod neighbors;
pub mod nested;
pub mod processors;
pub mod quick;
pub mod section5;
pub mod switches;
pub mod timekeeping;

/// Makes the sub-commands and [`run`] of a list of modules.
macro_rules! experiments {
    ($($(#[$attribute:meta])* $name:ident($module:ident)),+ $(,)?) => {
        /// Which one.
        #[derive(Subcommand, Clone, Debug)]
        pub enum Experiment {
            $(
                #[expect(missing_docs, reason = "a doc comment here would replace the experiment's help")]
                $(#[$attribute])*
                $name($module::Options),
            )+
        }

        /// Makes an experiment. True if it met its requirements.
        ///
        /// # Errors
        /// When it cannot be made.
        pub fn run(experiment: &Experiment) -> Result<bool> {
            match experiment {
                $(Experiment::$name(options) => $module::run(options),)+
            }
        }
    };
}

experiments! {
    Quick(quick),
    Figure1(figure1),
    Timekeeping(timekeeping),
    Section5(section5),
    Neighbors(neighbors),
    #[command(name = "behaviours", alias = "behaviors")]
    Behaviors(behaviors),
    Switches(switches),
    Bystanders(bystanders),
    Evasion(evasion),
    Attack(attack),
    Fuzz(fuzz),
    Disks(disks),
    Processors(processors),
}
