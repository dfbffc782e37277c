//! What a daemon does about a version that is declared and does not serve: a pure rule.

use super::RebuildRow;

/// What a daemon sees of a projector.
#[derive(Debug, Clone)]
pub(crate) struct Seen<'s> {
    /// The version that serves.
    pub(crate) serves: i32,
    /// The last rebuild.
    pub(crate) row: Option<&'s RebuildRow>,
    /// Whether there is a tracker of a version that is to go live.
    pub(crate) has_next: bool,
    /// Whether this daemon was the last that has built it.
    pub(crate) is_mine: bool,
    /// Whether nobody has built it for so long that nobody wants it any more.
    pub(crate) is_left: bool,
    /// Whether the daemon that was the last one to build it gives no sign of life any more.
    pub(crate) is_orphaned: bool,
    /// Whether an operator who has built it was asked whether it goes live, and has not agreed.
    pub(crate) is_declined: bool,
    /// Whether an operator has decided against the declared version: he has gone back from it, or given it up.
    pub(crate) is_left_out: bool,
}

/// What the daemon declares of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Declared<'d> {
    pub(crate) version: i32,
    pub(crate) fingerprint: &'d str,
    /// Whether it can be built beside at all.
    pub(crate) can_be_built: bool,
}

/// What the daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Nothing.
    Nothing,
    /// Build the declared version, or go on with it.
    Build,
    /// Give up what is being built, because the configuration has gone back.
    Abandon,
    /// Remove what a kill has left.
    Tidy,
}

/// Two daemons with different declarations, as in a deploy that rolls, do not undo what the other one does: who declares an older
/// version waits until nobody has built for long, because whoever did may be starting again. Who declares the same version otherwise
/// waits until the daemon that has built it has ended, also where an operator has agreed to it: nobody else would bring it live. As
/// it then builds itself, the two never take turns.
pub(crate) fn decide(seen: &Seen<'_>, declared: Declared<'_>) -> Wish {
    let Seen { serves, row, has_next, is_mine, is_left, is_orphaned, is_declined, is_left_out } = seen;
    let under_way = row.filter(|row| row.state().is_under_way());
    let may_replace = *is_mine || *is_left;
    if declared.version <= *serves {
        return match under_way {
            // Also what was built beside a version that serves no more: a reset may have made the tables of the declared one.
            Some(row)
                if row.automatic
                    && (row.version > declared.version || row.from_version != *serves)
                    && may_replace =>
            {
                Wish::Abandon
            }
            None if *has_next => Wish::Tidy,
            _ => Wish::Nothing,
        };
    }
    if !declared.can_be_built {
        return Wish::Nothing;
    }
    let is_same = |row: &RebuildRow| {
        (row.version, row.fingerprint.as_str()) == (declared.version, declared.fingerprint)
    };
    // Who has begun it after he had decided against it has changed his mind.
    if *is_left_out && !under_way.is_some_and(|row| is_same(row) && row.from_version == *serves) {
        return match under_way {
            // As if the declaration had gone back to the version that serves.
            Some(row) if row.automatic && may_replace => Wish::Abandon,
            None if *has_next => Wish::Tidy,
            _ => Wish::Nothing,
        };
    }
    match (row, under_way) {
        (_, Some(row)) if is_same(row) && *is_declined && !row.is_approved => Wish::Nothing,
        (_, Some(row)) if is_same(row) => Wish::Build,
        (_, Some(row)) if row.version > declared.version && !(row.automatic && may_replace) => Wish::Nothing,
        (_, Some(row))
            if row.version == declared.version && !(row.automatic && (may_replace || *is_orphaned)) =>
        {
            Wish::Nothing
        }
        (_, Some(_)) => Wish::Build,
        // An operator has given just this up.
        (Some(row), None) if is_same(row) && !row.has_served() => {
            if *has_next {
                Wish::Tidy
            } else {
                Wish::Nothing
            }
        }
        _ => Wish::Build,
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn row(version: i32, state: State, fingerprint: &str) -> RebuildRow {
        RebuildRow {
            version,
            from_version: 1,
            state: state.as_str().to_owned(),
            fingerprint: fingerprint.to_owned(),
            started_by: "web-1:4711".to_owned(),
            automatic: true,
            is_approved: false,
            difference: None,
            updated_at: chrono::Utc::now(),
        }
    }

    fn seen(row: Option<&RebuildRow>) -> Seen<'_> {
        Seen {
            serves: 1,
            row,
            has_next: row.is_some(),
            is_mine: false,
            is_left: false,
            is_orphaned: false,
            is_declined: false,
            is_left_out: false,
        }
    }

    fn declared(version: i32) -> Declared<'static> {
        Declared { version, fingerprint: "f", can_be_built: true }
    }

    #[test]
    fn a_raised_version_is_built_and_goes_on_after_a_kill() {
        assert_eq!(decide(&seen(None), declared(2)), Wish::Build);
        assert_eq!(decide(&seen(None), declared(1)), Wish::Nothing);
        assert_eq!(decide(&seen(None), Declared { can_be_built: false, ..declared(2) }), Wish::Nothing);
        assert_eq!(decide(&seen(Some(&row(2, State::Building, "f"))), declared(2)), Wish::Build);
        let earlier = row(1, State::Live, "other");
        assert_eq!(decide(&Seen { has_next: false, ..seen(Some(&earlier)) }, declared(2)), Wish::Build);
    }

    #[test]
    fn a_third_version_replaces_the_second_and_the_first_abandons_it_once_nobody_builds_it() {
        let second = row(2, State::Building, "f");
        assert_eq!(decide(&seen(Some(&second)), declared(3)), Wish::Build);
        assert_eq!(decide(&seen(Some(&second)), declared(1)), Wish::Nothing, "another daemon wants it");
        for (is_mine, is_left) in [(true, false), (false, true)] {
            assert_eq!(decide(&Seen { is_mine, is_left, ..seen(Some(&second)) }, declared(1)), Wish::Abandon);
        }
        let by_operator = RebuildRow { automatic: false, ..second.clone() };
        assert_eq!(decide(&Seen { is_left: true, ..seen(Some(&by_operator)) }, declared(1)), Wish::Nothing);
        let third = row(3, State::Building, "f");
        assert_eq!(decide(&seen(Some(&third)), declared(2)), Wish::Nothing, "a deploy that rolls");
        let other = row(2, State::Building, "other");
        assert_eq!(decide(&seen(Some(&other)), declared(2)), Wish::Nothing);
        assert_eq!(decide(&Seen { is_mine: true, ..seen(Some(&other)) }, declared(2)), Wish::Build);
    }

    #[test]
    fn another_declaration_of_the_same_version_waits_for_the_end_of_the_daemon_that_builds() {
        for is_approved in [false, true] {
            let other = RebuildRow { is_approved, ..row(2, State::Differs, "other") };
            let orphaned = Seen { is_orphaned: true, ..seen(Some(&other)) };
            assert_eq!(decide(&seen(Some(&other)), declared(2)), Wish::Nothing, "its daemon lives");
            assert_eq!(decide(&orphaned, declared(2)), Wish::Build);
            assert_eq!(decide(&orphaned, declared(1)), Wish::Nothing, "who declares less waits for longer");
            let by_operator = RebuildRow { automatic: false, ..other.clone() };
            let orphaned = Seen { row: Some(&by_operator), ..orphaned };
            assert_eq!(decide(&orphaned, declared(2)), Wish::Nothing, "his builds are left to him");
        }
    }

    #[test]
    fn what_an_operator_builds_is_left_to_him_until_he_agrees_or_the_version_is_raised() {
        let same = RebuildRow { automatic: false, ..row(2, State::Verified, "f") };
        assert_eq!(decide(&seen(Some(&same)), declared(2)), Wish::Build, "he was interrupted");
        let declined = Seen { is_declined: true, is_left: true, ..seen(Some(&same)) };
        assert_eq!(decide(&declined, declared(2)), Wish::Nothing);
        let agreed = RebuildRow { is_approved: true, ..same.clone() };
        assert_eq!(decide(&Seen { row: Some(&agreed), ..declined }, declared(2)), Wish::Build);
        let by_operator = RebuildRow { automatic: false, ..row(2, State::Differs, "corrected") };
        let seen = Seen { is_left: true, ..seen(Some(&by_operator)) };
        assert_eq!(decide(&seen, declared(2)), Wish::Nothing);
        assert_eq!(decide(&seen, declared(3)), Wish::Build);
    }

    #[test]
    fn what_stands_beside_a_version_that_serves_no_more_is_given_up() {
        let second = row(2, State::Differs, "f");
        let serves_already = Seen { serves: 2, is_left: true, ..seen(Some(&second)) };
        assert_eq!(decide(&serves_already, declared(2)), Wish::Abandon);
        let aborted = row(2, State::Aborted, "f");
        assert_eq!(decide(&seen(Some(&aborted)), declared(2)), Wish::Tidy);
    }

    #[test]
    fn what_an_operator_has_gone_back_from_takes_the_place_of_nothing_until_he_builds_it_again() {
        let third = row(3, State::Differs, "of version 3");
        let seen = Seen { is_left_out: true, ..seen(Some(&third)) };
        assert_eq!(decide(&seen, declared(2)), Wish::Nothing, "another daemon wants the third");
        for (is_mine, is_left) in [(true, false), (false, true)] {
            assert_eq!(decide(&Seen { is_mine, is_left, ..seen.clone() }, declared(2)), Wish::Abandon);
        }
        let by_operator = RebuildRow { automatic: false, ..third.clone() };
        let seen_by_operator = Seen { row: Some(&by_operator), is_left: true, ..seen.clone() };
        assert_eq!(decide(&seen_by_operator, declared(2)), Wish::Nothing);
        let again = RebuildRow { automatic: false, ..row(2, State::Building, "f") };
        assert_eq!(decide(&Seen { row: Some(&again), ..seen.clone() }, declared(2)), Wish::Build);
        let from_before = RebuildRow { from_version: 2, automatic: true, ..again };
        let from_before = Seen { row: Some(&from_before), is_mine: true, ..seen };
        assert_eq!(decide(&from_before, declared(2)), Wish::Abandon, "it was begun before he went back");
    }

    #[test]
    fn what_an_operator_has_given_up_or_gone_back_from_is_not_built_again_unless_it_is_changed() {
        let aborted = row(2, State::Aborted, "f");
        assert_eq!(decide(&Seen { has_next: false, ..seen(Some(&aborted)) }, declared(2)), Wish::Nothing);
        let corrected = row(2, State::Aborted, "earlier");
        assert_eq!(decide(&Seen { has_next: false, ..seen(Some(&corrected)) }, declared(2)), Wish::Build);
        let back = RebuildRow { version: 1, from_version: 2, ..row(1, State::Live, "f") };
        let gone_back = Seen { has_next: false, is_left_out: true, ..seen(Some(&back)) };
        assert_eq!(decide(&gone_back, declared(2)), Wish::Nothing);
        assert_eq!(decide(&Seen { is_left_out: false, ..gone_back.clone() }, declared(3)), Wish::Build);
        let third = row(3, State::Aborted, "of version 3");
        assert_eq!(decide(&Seen { row: Some(&third), ..gone_back }, declared(2)), Wish::Nothing);
        let merged = row(2, State::Merged, "f");
        assert_eq!(decide(&Seen { serves: 2, ..seen(Some(&merged)) }, declared(2)), Wish::Tidy);
    }
}
