//! What a client may ask, from a line of JSON.
//!
//! No value has parts deeper than two levels, and what does not belong there is refused or skipped
//! without recursion: a line costs no more stack or heap than its length allows.

use alloc::string::{String, ToString};
use core::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::console::RequestId;
use crate::numbers::hexadecimal;

/// The longest word that names a request, in bytes.
const ID_LENGTH: usize = 64;

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Id;

        impl Visitor<'_> for Id {
            type Value = RequestId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(
                    f,
                    "an id: a whole number, or a word of up to {ID_LENGTH} characters of ASCII"
                )
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<RequestId, E> {
                Ok(RequestId::Number(number))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<RequestId, E> {
                if word.len() <= ID_LENGTH && word.bytes().all(|byte| byte.is_ascii_graphic()) {
                    Ok(RequestId::Word(word.into()))
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(""), &self))
                }
            }
        }

        deserializer.deserialize_any(Id)
    }
}

/// A number of 64 bits: as such, or in hexadecimal digits behind `0x`, for JSON's own are often not
/// exact above 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(pub u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hexadecimal;

        impl Visitor<'_> for Hexadecimal {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a string of hexadecimal digits behind 0x")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Number, E> {
                word.strip_prefix("0x")
                    .and_then(hexadecimal)
                    .map(Number)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(""), &self))
            }
        }

        deserializer.deserialize_any(Hexadecimal)
    }
}

/// A request for what is in a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadRequest {
    /// The VM's name.
    pub vm: String,
    /// The address space; none for guest-physical addresses.
    pub cr3: Option<Number>,
    /// The first address.
    pub address: Number,
    /// The number of bytes.
    pub length: u64,
}

/// A request for the registers of a VCPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegistersRequest {
    /// The VM's name.
    pub vm: String,
    /// The number of the VCPU; by default 0.
    #[serde(default)]
    pub vcpu: u32,
}

/// The fields of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    id: RequestId,
    command: Option<String>,
    read: Option<ReadRequest>,
    registers: Option<RegistersRequest>,
    events: Option<bool>,
    hello: Option<u32>,
}

/// The field that is looked for where the others are wrong.
#[derive(Deserialize)]
struct IdOnly {
    id: RequestId,
}

/// The thing that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A command, as at the console.
    Command(String),
    /// The contents of memory.
    Read(ReadRequest),
    /// The registers of a VCPU.
    Registers(RegistersRequest),
    /// Events, or no more of them.
    Events(bool),
    /// The facts about this end of the line, which is to speak this version of the protocol.
    Hello(u32),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The client's name for it.
    pub id: RequestId,
    /// The thing that is asked for.
    pub wish: Wish,
}

/// A line that is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadRequest {
    /// The client's name for it, if that could be made out.
    pub id: Option<RequestId>,
    /// The reason why it is none.
    pub message: String,
}

impl Request {
    /// Parses a line.
    ///
    /// # Errors
    /// If it is no request.
    pub(super) fn parse(line: &[u8]) -> Result<Self, BadRequest> {
        let fields: Fields = serde_json::from_slice(line).map_err(|error| BadRequest {
            id: serde_json::from_slice(line).ok().map(|IdOnly { id }| id),
            message: error.to_string(),
        })?;
        let wishes = [
            fields.command.map(Wish::Command),
            fields.read.map(Wish::Read),
            fields.registers.map(Wish::Registers),
            fields.events.map(Wish::Events),
            fields.hello.map(Wish::Hello),
        ];
        let mut wishes = wishes.into_iter().flatten();
        match (wishes.next(), wishes.next()) {
            (Some(wish), None) => Ok(Self {
                id: fields.id,
                wish,
            }),
            _ => Err(BadRequest {
                id: Some(fields.id),
                message: "a request has exactly one of `command`, `read`, `registers`, `events` \
                          and `hello`"
                    .into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    fn wish(line: &str) -> Wish {
        Request::parse(line.as_bytes()).unwrap().wish
    }

    fn refused(line: &str) -> BadRequest {
        Request::parse(line.as_bytes()).unwrap_err()
    }

    #[test]
    fn requests_of_all_kinds() {
        let request = Request::parse(b"{\"id\":7,\"command\":\"vms\"}\r").unwrap();
        assert_eq!(request.id, RequestId::Number(7));
        assert_eq!(request.wish, Wish::Command("vms".into()));
        assert_eq!(
            wish(r#"{"id":"a","read":{"vm":"web","cr3":"0x1000","address":4096,"length":16}}"#),
            Wish::Read(ReadRequest {
                vm: "web".into(),
                cr3: Some(Number(0x1000)),
                address: Number(4096),
                length: 16,
            })
        );
        assert_eq!(
            wish(r#"{"id":"a","registers":{"vm":"web"}}"#),
            Wish::Registers(RegistersRequest {
                vm: "web".into(),
                vcpu: 0,
            })
        );
        assert_eq!(wish(r#"{"id":1,"events":false}"#), Wish::Events(false));
        assert_eq!(wish(r#"{"id":1,"hello":1}"#), Wish::Hello(1));
    }

    #[test]
    fn what_is_no_request_is_refused_by_its_id_if_that_is_known() {
        assert_eq!(refused("vms").id, None);
        assert_eq!(refused("").id, None);
        assert_eq!(refused("{\"command\":\"vms\"}").id, None);
        for line in [
            r#"{"id":3}"#,
            r#"{"id":3,"command":7}"#,
            r#"{"id":3,"command":"vms","hello":1}"#,
            r#"{"id":3,"comand":"vms"}"#,
            r#"{"id":3,"read":{"vm":"web","address":"1000","length":1}}"#,
            r#"{"id":3,"read":{"vm":"web","address":-1,"length":1}}"#,
            r#"{"id":3,"read":{"vm":"web","address":"0x","length":1}}"#,
            r#"{"id":3,"read":{"vm":"web","address":1,"length":1e300}}"#,
            r#"{"id":3,"read":{"vm":"web","address":99999999999999999999,"length":1}}"#,
            r#"{"id":3,"registers":{"vm":"web","vcpu":4294967296}}"#,
        ] {
            assert_eq!(refused(line).id, Some(RequestId::Number(3)), "{line}");
        }
        for line in [
            r#"{"id":-1,"hello":1}"#,
            r#"{"id":null,"hello":1}"#,
            r#"{"id":"two words","hello":1}"#,
            r#"{"id":[1],"hello":1}"#,
            r#"{"id":1,"id":2,"hello":1}"#,
            r#"{"id":1,"hello":1} {}"#,
        ] {
            assert_eq!(refused(line).id, None, "{line}");
        }
        let long = format!(r#"{{"id":"{}","hello":1}}"#, "x".repeat(ID_LENGTH + 1));
        assert_eq!(refused(&long).id, None);
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            for line in [
                open.repeat(100_000),
                format!("{{\"id\":1,\"x\":{}", open.repeat(100_000)),
                format!(
                    "{{\"id\":1,\"read\":{}1{}}}",
                    open.repeat(100_000),
                    close.repeat(100_000)
                ),
            ] {
                refused(&line);
            }
            let whole = format!(
                "{{\"x\":{}1{},\"id\":1}}",
                open.repeat(100_000),
                close.repeat(100_000)
            );
            assert_eq!(refused(&whole).id, Some(RequestId::Number(1)));
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[{}\\[\\]\":,0-9a-z \\\\]{0,80}".prop_map(String::into_bytes),
            (any::<u64>(), "[ -~]{0,40}")
                .prop_map(|(id, rest)| format!("{{\"id\":{id},{rest}}}").into_bytes()),
        ]) {
            if let Ok(request) = Request::parse(&line) {
                let is_word = matches!(&request.id, RequestId::Word(word) if word.len() > ID_LENGTH);
                prop_assert!(!is_word);
            }
        }
    }
}
