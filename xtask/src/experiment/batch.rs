//! Cases of an experiment that take minutes each: several at a time, with the time that is left.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Calls `one` for each of the cases, `jobs` of them at a time in their order, and gives the
/// results in the cases' order.
///
/// `cost` is how long a case takes, in any unit: the time left is told by it. `finished` is called
/// after each case, by one thread at a time, with the results so far in the cases' order.
pub(super) fn run<C: Copy + Sync, R: Send>(
    cases: &[C],
    jobs: u32,
    cost: impl Fn(C) -> f64 + Sync,
    one: impl Fn(C) -> R + Sync,
    finished: impl Fn(&[&R]) + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let results: Mutex<Vec<Option<R>>> = Mutex::new(cases.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((index, &case)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    cases.get(index).map(|case| (index, case))
                } {
                    let result = one(case);
                    let Ok(mut results) = results.lock() else {
                        return;
                    };
                    results[index] = Some(result);
                    let so_far: Vec<&R> = results.iter().flatten().collect();
                    finished(&so_far);
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
    let results = results.into_inner().unwrap_or_default();
    results.into_iter().flatten().collect()
}

/// How long what costs `rest` takes, where what costs `done` took `elapsed`.
fn left(elapsed: Duration, done: f64, rest: f64) -> Duration {
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * rest / done).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_cases_whoever_is_first() {
        let cases = [30, 1, 2, 20];
        let reported = Mutex::new(Vec::new());
        let results = run(
            &cases,
            2,
            |_| 1.0,
            |case: u64| {
                std::thread::sleep(Duration::from_millis(case));
                case * 10
            },
            |so_far| reported.lock().expect("a lock").push(so_far.len()),
        );
        assert_eq!(results, [300, 10, 20, 200]);
        assert_eq!(*reported.lock().expect("a lock"), [1, 2, 3, 4]);
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
