//! What the file of an aggregate declares already.

use super::naming::{Field, Name};

/// Whether it declares a type of this name: an event, a command, the aggregate.
pub(super) fn has_type(text: &str, name: &str) -> bool {
    let declares = |line: &str| {
        let words: Vec<&str> = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
        words.windows(2).any(|two| matches!(two[0], "struct" | "enum") && two[1] == name)
    };
    text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")).any(declares)
}

pub(super) fn has_event(text: &str, name: &Name) -> bool {
    variant(text, &name.camel()).is_some()
}

/// Whether an event that is declared has exactly these fields. `None` if its struct is declared elsewhere.
pub(super) fn has_fields(text: &str, event: &Name, fields: &[Field]) -> Option<bool> {
    let behind = variant(text, &event.camel())?.strip_prefix(" {")?;
    let body = &behind[..behind.find('}')?];
    let is_code = |line: &&str| !line.starts_with("//") && !line.starts_with("#[");
    let body: String = body.lines().map(str::trim).filter(is_code).collect();
    let mut declared = members(&body);
    let mut wanted: Vec<String> = fields
        .iter()
        .map(|field| format!("{}:{}", field.name.as_str(), field.of_type.replace(' ', "")))
        .collect();
    declared.sort();
    wanted.sort();
    Some(declared == wanted)
}

/// What stands behind the name of an event where it is declared.
fn variant<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let at_line = text.match_indices(name).find(|(at, _)| {
        let line = text[..*at].rfind('\n').map_or(0, |before| before + 1);
        let behind = &text[at + name.len()..];
        text[line..*at].trim().is_empty() && (behind.starts_with(" {") || behind.starts_with('('))
    });
    at_line.map(|(at, _)| &text[at + name.len()..])
}

/// The fields of a struct without spaces. A comma between angle brackets separates none.
fn members(body: &str) -> Vec<String> {
    let mut members = vec![String::new()];
    let mut depth = 0;
    for c in body.chars().filter(|c| !c.is_whitespace()) {
        depth += i32::from(c == '<') - i32::from(c == '>');
        match members.last_mut() {
            Some(last) if c != ',' || depth > 0 => last.push(c),
            _ => members.push(String::new()),
        }
    }
    members.retain(|member| !member.is_empty());
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
        pub enum OrderEvent {
            /// Paid.
            OrderPaid { amount: u32, by: Map<String, u8> },
            OrderSent {
                // Where to.
                address: String,
            },
            OrderClosed {},
            OrderLost(OrderLost),
        }
        pub struct PayOrder {}
        impl Decide<Forget> for Order {}";

    fn has(event: &str, fields: &[&str]) -> Option<bool> {
        let field = |(name, of_type): (&str, &str)| Field {
            name: name.parse().unwrap(),
            of_type: of_type.to_owned(),
        };
        let fields: Vec<Field> = fields.iter().map(|text| field(text.split_once(':').unwrap())).collect();
        has_fields(FILE, &event.parse().unwrap(), &fields)
    }

    #[test]
    fn fields_of_an_event_are_compared() {
        assert_eq!(has("OrderPaid", &["by:Map<String, u8>", "amount:u32"]), Some(true));
        assert_eq!(has("OrderPaid", &["amount:u32"]), Some(false));
        assert_eq!(has("OrderPaid", &["amount:u64", "by:Map<String,u8>"]), Some(false));
        assert_eq!(has("OrderSent", &["address:String"]), Some(true));
        assert_eq!(has("OrderClosed", &[]), Some(true));
        assert_eq!(has("OrderLost", &[]), None);
    }

    #[test]
    fn types_and_events_are_found() {
        assert!(has_type(FILE, "PayOrder") && has_type(FILE, "OrderEvent"));
        assert!(!has_type(FILE, "Pay") && !has_type(FILE, "Forget"));
        let event = |name: &str| has_event(FILE, &name.parse().unwrap());
        assert!(event("OrderPaid") && event("OrderLost") && !event("OrderEvent") && !event("Order"));
    }
}
