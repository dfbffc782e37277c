//! Tries every interleaving of a few writers and of processors that follow the rule.
//!
//! Every sound model must lose nothing; every model with one step in the wrong place must lose
//! something, or the exploration proves nothing.

use std::collections::HashSet;

use proptest::prelude::*;

mod model;

use model::{Model, Mutation, World};

struct Explored {
    states: usize,
    losing: usize,
}

/// Visits every reachable world. A world that has lost an event is counted and not followed further.
fn explore(model: Model) -> Explored {
    let start = World::new(&model);
    let mut seen = HashSet::from([start.clone()]);
    let mut waiting = vec![start];
    let mut losing = 0;
    while let Some(world) = waiting.pop() {
        if world.has_lost() {
            losing += 1;
            continue;
        }
        if model.mutation == Mutation::None && world.writers_are_done(&model) {
            assert_reader_finishes(&model, world.clone());
        }
        for next in world.successors(&model) {
            let pairs = next.processors.iter().zip(&world.processors);
            assert!(
                pairs.into_iter().all(|(next, now)| next.position >= now.position),
                "a position moved backward"
            );
            if seen.insert(next.clone()) {
                waiting.push(next);
            }
        }
    }
    let explored = Explored { states: seen.len(), losing };
    println!("{:>7} states, {:>5} of them have lost an event: {model:?}", explored.states, explored.losing);
    explored
}

/// Two rounds after the last writer has ended, the reader has read everything and is at the head.
fn assert_reader_finishes(model: &Model, mut world: World) {
    for _ in 0..10 {
        world = world.reader_steps(model).remove(0);
    }
    for one in &world.processors {
        let expected = one.expected(world.visible);
        assert_eq!(one.delivered, expected, "an event is never read: {world:?}");
        assert!(one.position >= world.last_value, "a processor never reaches the head: {world:?}");
    }
}

const TWO_WRITERS: Model = Model {
    writers: 2,
    transactions: 1,
    draws: 2,
    savepoints: false,
    prepares: false,
    prefix: false,
    draws_first: false,
    joins: false,
    mutation: Mutation::None,
};

const THREE_WRITERS: Model = Model { writers: 3, draws: 1, ..TWO_WRITERS };

/// Tells the figures of a sound model and fails if it loses an event.
fn assert_nothing_is_lost(model: Model) {
    let explored = explore(model);
    assert_eq!(explored.losing, 0);
    assert!(explored.states > 10_000, "{} states: too few to mean anything", explored.states);
}

#[test]
fn two_writers_that_draw_twice_lose_nothing() {
    assert_nothing_is_lost(TWO_WRITERS);
}

#[test]
fn three_writers_lose_nothing() {
    assert_nothing_is_lost(THREE_WRITERS);
}

#[test]
fn writers_that_come_again_lose_nothing() {
    assert_nothing_is_lost(Model { draws: 1, transactions: 2, ..TWO_WRITERS });
}

#[test]
fn a_reader_that_looks_at_the_visible_prefix_loses_nothing() {
    assert_nothing_is_lost(Model { prefix: true, ..TWO_WRITERS });
}

#[test]
fn writers_that_roll_back_to_savepoints_lose_nothing() {
    assert_nothing_is_lost(Model { savepoints: true, ..TWO_WRITERS });
}

#[test]
fn writers_that_draw_first_and_insert_later_lose_nothing() {
    assert_nothing_is_lost(Model { draws_first: true, ..TWO_WRITERS });
}

#[test]
fn processors_that_join_at_chosen_positions_cost_nobody_an_event() {
    assert_nothing_is_lost(Model { joins: true, prefix: true, draws: 1, ..TWO_WRITERS });
    assert_nothing_is_lost(Model { joins: true, draws_first: true, draws: 1, ..TWO_WRITERS });
}

#[test]
fn writers_that_are_prepared_lose_nothing() {
    assert_nothing_is_lost(Model { prepares: true, ..TWO_WRITERS });
}

#[test]
fn every_step_in_the_wrong_place_loses_an_event() {
    for mutation in [
        Mutation::WritersReadFirst,
        Mutation::ReleasedBeforeVisible,
        Mutation::DrawnBeforeLocked,
        Mutation::OldSnapshot,
        Mutation::RenameUnnoticed,
        Mutation::TableLocksOnly,
        Mutation::ChosenPositionTrusted,
    ] {
        let model = Model {
            draws: 1,
            prepares: mutation == Mutation::RenameUnnoticed,
            draws_first: mutation == Mutation::TableLocksOnly,
            joins: mutation == Mutation::ChosenPositionTrusted,
            mutation,
            ..TWO_WRITERS
        };
        assert!(explore(model).losing > 0, "{mutation:?} goes unnoticed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// More writers than can be tried exhaustively, doing everything, in random order.
    #[test]
    fn no_random_run_loses_an_event(
        choices in prop::collection::vec(any::<u16>(), 400),
        draws_first in any::<bool>(),
    ) {
        let model = Model {
            writers: 6, transactions: 2, draws: 3, savepoints: true, prepares: true, prefix: true,
            draws_first, joins: true, mutation: Mutation::None,
        };
        let mut world = World::new(&model);
        for choice in choices {
            let mut next = world.successors(&model);
            world = next.swap_remove(usize::from(choice) % next.len());
            prop_assert!(!world.has_lost(), "{:?}", world);
        }
        while !world.writers_are_done(&model) {
            world = world.successors(&model).swap_remove(0);
            prop_assert!(!world.has_lost(), "{:?}", world);
        }
        assert_reader_finishes(&model, world);
    }
}
