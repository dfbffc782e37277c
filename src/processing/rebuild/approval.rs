//! What an approval covers: a pure rule.
//!
//! Somebody has agreed to what a comparison has found. Later comparisons of the same build find about the same again, because
//! events come in between. What is of another kind nobody has agreed to.

use serde::{Deserialize, Serialize};

use super::Difference;
use super::set_aside::AgreedSetAside;
use crate::event::Position;

/// What a comparison has found, as the table `rebuilds` keeps it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compared<'c> {
    /// Where both versions were.
    pub(crate) position: Position,
    /// How it would go live by itself: `merge` or `swap`.
    pub(crate) way: &'static str,
    #[serde(flatten)]
    pub(crate) difference: &'c Difference,
}

/// The part of it that an approval depends on. Rows of before that lack a position allow for no events in between.
#[derive(Debug, Deserialize)]
struct Approved {
    position: Option<i64>,
    tables: Vec<ApprovedTable>,
    gone_tables: Vec<String>,
    #[serde(default)]
    dead_letters: AgreedSetAside,
    #[serde(default)]
    changed_ddl: Vec<String>,
    way: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ApprovedTable {
    table: String,
    added: i64,
    gone: i64,
    changed: i64,
    changed_columns: Vec<(String, i64)>,
    gone_columns: Vec<String>,
}

impl Compared<'_> {
    /// Whether who has agreed to `former`, which an earlier comparison has found, has agreed to this as well: nothing is in another
    /// table or column, or of another kind, and of each kind there are at most as many rows more as events came in between. Likewise
    /// of events that were set aside. Who has agreed to an exchange, after which the former tables are kept, has not agreed to a merge.
    pub(crate) fn is_covered_by(&self, former: Option<&serde_json::Value>) -> bool {
        let Some(former) = former.and_then(|former| Approved::deserialize(former).ok()) else { return false };
        let since = former.position.map_or(0, |position| (self.position.get() - position).max(0));
        let Difference { tables, gone_tables, dead_letters, changed_ddl, .. } = self.difference;
        let keeps_tables = self.way == "swap" || former.way.as_deref() != Some("swap");
        keeps_tables
            && dead_letters.is_covered_by(&former.dead_letters, since)
            && changed_ddl.iter().all(|statement| former.changed_ddl.contains(statement))
            && gone_tables.iter().all(|table| former.gone_tables.contains(table))
            && tables.iter().all(|table| {
                let Some(agreed) = former.tables.iter().find(|agreed| agreed.table == table.table) else {
                    return table.number() == 0 && table.gone_columns.is_empty();
                };
                let few = |now: i64, then: i64| now == 0 || then > 0 && now <= then.saturating_add(since);
                let has = |column: &String| agreed.changed_columns.iter().any(|(name, _)| name == column);
                few(table.added, agreed.added)
                    && few(table.gone, agreed.gone)
                    && few(table.changed, agreed.changed)
                    && table.changed_columns.iter().all(|(column, _)| has(column))
                    && table.gone_columns.iter().all(|column| agreed.gone_columns.contains(column))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SetAside, TableDifference};
    use super::*;

    fn difference(added: i64, changed: i64, columns: &[&str]) -> Difference {
        let table = TableDifference {
            table: "orders".into(),
            rows: 100,
            added,
            gone: 0,
            changed,
            changed_columns: columns.iter().map(|column| ((*column).to_owned(), changed)).collect(),
            other_columns: vec![],
            gone_columns: vec![],
            retyped_columns: vec![],
            changed_key: None,
            not_compared: vec![],
            same_shape: true,
            key: vec!["id".into()],
            examples: vec![],
        };
        Difference { tables: vec![table], ..Difference::default() }
    }

    fn compared(position: i64, difference: &Difference) -> Compared<'_> {
        Compared { position: position.into(), way: "merge", difference }
    }

    fn kept(position: i64, difference: &Difference) -> serde_json::Value {
        serde_json::to_value(compared(position, difference)).unwrap()
    }

    #[test]
    fn an_approval_covers_what_was_compared_and_what_events_since_explain_and_nothing_else() {
        let agreed = kept(50, &difference(0, 4, &["n"]));
        let covers = |position: i64, difference: &Difference| {
            compared(position, difference).is_covered_by(Some(&agreed))
        };
        assert!(covers(50, &difference(0, 4, &["n"])) && covers(50, &difference(0, 3, &["n"])));
        assert!(covers(50, &difference(0, 0, &[])), "nothing differs any more");
        assert!(covers(52, &difference(0, 6, &["n"])));
        assert!(!covers(52, &difference(0, 7, &["n"])), "two events do not explain three rows");
        assert!(!covers(60, &difference(0, 4, &["n", "tenant"])), "another column");
        assert!(!covers(60, &difference(1, 4, &["n"])), "rows that are added");
        let gone = Difference { gone_tables: vec!["lines".into()], ..difference(0, 4, &["n"]) };
        assert!(!covers(60, &gone));
    }

    #[test]
    fn who_has_agreed_to_an_exchange_has_not_agreed_to_a_merge() {
        let found = difference(0, 4, &["n"]);
        let swap = Compared { way: "swap", ..compared(50, &found) };
        let merge = compared(50, &found);
        let kept = |compared: &Compared<'_>| serde_json::to_value(compared).unwrap();
        assert!(!merge.is_covered_by(Some(&kept(&swap))) && merge.is_covered_by(Some(&kept(&merge))));
        assert!(swap.is_covered_by(Some(&kept(&merge))) && swap.is_covered_by(Some(&kept(&swap))));
    }

    #[test]
    fn who_has_agreed_to_rows_has_not_agreed_to_dead_letters() {
        let dead_letters = SetAside { number: 1, failed: vec![("Named".into(), 1)], examples: vec![] };
        let found = Difference { dead_letters, ..difference(0, 4, &["n"]) };
        let compared = compared(60, &found);
        let mut of_before = kept(50, &difference(0, 4, &["n"]));
        assert!(!compared.is_covered_by(Some(&of_before)));
        assert!(compared.is_covered_by(Some(&kept(50, &found))));
        // As it was kept before dead letters were compared.
        of_before.as_object_mut().unwrap().remove("dead_letters");
        assert!(!compared.is_covered_by(Some(&of_before)));
        let rows = difference(0, 4, &["n"]);
        assert!(super::tests::compared(60, &rows).is_covered_by(Some(&of_before)));
    }

    #[test]
    fn who_has_agreed_to_no_difference_has_agreed_to_none_and_before_a_comparison_there_is_nothing_to_agree_to()
     {
        let none = kept(50, &difference(0, 0, &[]));
        let found = difference(0, 1, &["n"]);
        let compared = compared(60, &found);
        assert!(!compared.is_covered_by(Some(&none)) && !compared.is_covered_by(None));
        let mut of_before = kept(50, &found);
        of_before.as_object_mut().unwrap().remove("position");
        assert!(compared.is_covered_by(Some(&of_before)));
        let more = difference(0, 2, &["n"]);
        assert!(!super::tests::compared(60, &more).is_covered_by(Some(&of_before)));
    }
}
