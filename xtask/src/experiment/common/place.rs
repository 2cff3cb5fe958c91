//! The guests that an experiment is made on, one after the other.

use crate::testbed::kernel::Series;

/// A guest: a Debian of so many VCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::experiment) struct Place {
    pub series: Series,
    pub vcpus: u32,
}

impl Place {
    /// Returns one for each of the kernels with each of these numbers of VCPUs, each once.
    pub(in crate::experiment) fn all(kernels: &[Series], vcpus: &[u32]) -> Vec<Self> {
        let mut places = Vec::new();
        for &vcpus in vcpus {
            for &series in kernels {
                let place = Self { series, vcpus };
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kernel_has_each_number_of_vcpus_once() {
        use Series::{V6_1, V6_12};
        let places = Place::all(&[V6_1, V6_12, V6_1], &[1, 2, 1]);
        let places: Vec<_> = places.iter().map(|it| (it.series, it.vcpus)).collect();
        assert_eq!(places, [(V6_1, 1), (V6_12, 1), (V6_1, 2), (V6_12, 2)]);
    }
}
