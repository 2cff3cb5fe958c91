//! Cases of an experiment that take minutes each: several at a time, with the time that is left.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Calls `one` for each of the cases, `jobs` of them at a time in their order, and gives the
/// results in the cases' order.
///
/// `cost` is how long a case takes, in any unit: the time left is told by it. `save` is called after
/// each case, by one thread at a time, with the results so far in the cases' order: the rest takes
/// long, and may be broken off. Beside the results comes what the last of these calls returned, the
/// one with all results.
pub(in crate::experiment) fn run<C: Copy + Sync, R: Send>(
    cases: &[C],
    jobs: u32,
    cost: impl Fn(C) -> f64 + Sync,
    one: impl Fn(C) -> R + Sync,
    save: impl Fn(&[&R]) -> Result<()> + Sync,
) -> (Vec<R>, Result<()>) {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let nothing: Vec<Option<R>> = cases.iter().map(|_| None).collect();
    let state = Mutex::new((nothing, Ok(())));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((index, &case)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    cases.get(index).map(|case| (index, case))
                } {
                    let result = one(case);
                    let Ok(mut state) = state.lock() else {
                        return;
                    };
                    let (results, saved) = &mut *state;
                    results[index] = Some(result);
                    let so_far: Vec<&R> = results.iter().flatten().collect();
                    *saved = save(&so_far);
                    if let Err(error) = saved {
                        eprintln!("cannot save what there is so far: {error:#}");
                    }
                    let total = |finished: bool| -> f64 {
                        let which = results.iter().zip(cases);
                        which
                            .filter(|(result, _)| result.is_some() == finished)
                            .map(|(_, &case)| cost(case))
                            .sum()
                    };
                    eprintln!(
                        "{} of {} done, about {} min left",
                        so_far.len(),
                        cases.len(),
                        left(began.elapsed(), total(true), total(false))
                            .as_secs()
                            .div_ceil(60)
                    );
                }
            });
        }
    });
    // Poisoned only by a panic, which the scope has passed on.
    let (results, saved) = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    (results.into_iter().flatten().collect(), saved)
}

/// Returns how long what costs `rest` takes, where what costs `done` took `elapsed`.
fn left(elapsed: Duration, done: f64, rest: f64) -> Duration {
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * rest / done).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_cases_whoever_is_first() {
        let cases = [30, 1, 2, 20];
        let reported = Mutex::new(Vec::new());
        let (results, saved) = run(
            &cases,
            2,
            |_| 1.0,
            |case: u64| {
                std::thread::sleep(Duration::from_millis(case));
                case * 10
            },
            |so_far| {
                reported.lock().expect("a lock").push(so_far.len());
                Ok(())
            },
        );
        assert_eq!(results, [300, 10, 20, 200]);
        assert_eq!(*reported.lock().expect("a lock"), [1, 2, 3, 4]);
        assert!(saved.is_ok());
    }

    #[test]
    fn what_could_not_be_saved_in_the_end_is_told_and_the_results_are_there() {
        let fails_at = |count| {
            let save = move |so_far: &[&u32]| -> Result<()> {
                ensure!(so_far.len() != count, "disk full");
                Ok(())
            };
            run(&[1, 2], 1, |_| 1.0, |case| case, save)
        };
        let (results, saved) = fails_at(2);
        assert_eq!(results, [1, 2]);
        assert!(saved.is_err());
        assert!(fails_at(1).1.is_ok(), "the second call saved it all");
    }

    #[test]
    fn what_is_left_goes_by_what_it_costs() {
        assert_eq!(
            left(Duration::from_secs(60), 2.0, 6.0),
            Duration::from_secs(180)
        );
        assert_eq!(left(Duration::from_secs(60), 2.0, 0.0), Duration::ZERO);
        assert_eq!(left(Duration::ZERO, 0.0, 0.0), Duration::ZERO);
    }
}
