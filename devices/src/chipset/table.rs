//! How the table of devices becomes code.

/// Makes the table of devices into the struct `Devices` with a field for each row, the number
/// `Id` of a row, and what finds a device by its number. A row is
///
/// ```text
/// name: Type = value, at [regions], wired to [wires];
/// ```
///
/// The regions and wires are numbered in their order, for the device's `Access::region` and
/// `Context::set_output`. The names between the bars are those of the configuration, of the
/// PCI functions and of the time in the values.
macro_rules! devices {
    (
        |$config:ident, $functions:ident, $now:ident|
        $($(#[$doc:meta])* $name:ident: $type:ty = $new:expr, at $regions:tt, wired to $wires:tt;)+
    ) => {
        /// All devices, by name.
        #[derive(Debug)]
        struct Devices {
            $($(#[$doc])* $name: $type,)+
        }

        /// The number of a device.
        #[allow(non_camel_case_types, reason = "the names are those of the fields")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Id {
            $($name,)+
        }

        impl Id {
            const ALL: &'static [Self] = &[$(Self::$name),+];

            const fn regions(self) -> &'static [Region] {
                match self {
                    $(Self::$name => const { &$regions },)+
                }
            }

            const fn wires(self) -> &'static [Wire] {
                match self {
                    $(Self::$name => const { &$wires },)+
                }
            }
        }

        impl Devices {
            fn new(
                $config: &ChipsetConfig,
                $functions: Vec<Box<dyn PciFunction>>,
                $now: Now,
            ) -> Self {
                Self {
                    $($name: $new,)+
                }
            }

            fn get(&mut self, id: Id) -> &mut dyn Device {
                match id {
                    $(Id::$name => &mut self.$name,)+
                }
            }
        }
    };
}
