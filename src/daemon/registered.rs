//! What a program has registered, and what its configuration says, become one.

use crate::config::Config;
use crate::handlers::native::Registry;
use crate::processing::declaration::{
    Handling, OnHandlerChange, ProcessorDeclaration, ProcessorKind, ProcessorSettings,
};
use crate::retry::OnFailure;
use crate::store::upcast::{Upcast, find_disordered, find_unreadable};

/// Completes a configuration with what the program has registered. How one of its processors is run is said by the section that
/// declares it with `native = true`, then by the program, then by `[runner]` and `[retry]`.
///
/// # Errors
/// Every contradiction between the configuration and the program.
pub(super) fn add_registered(config: &mut Config, registry: &Registry) -> Result<(), Vec<String>> {
    let mut faults = registry.faults().to_vec();
    faults.extend(config.processors.iter().filter_map(|declared| find_contradiction(declared, registry)));
    config.upcasts.extend_from_slice(registry.upcasts());
    faults.extend(find_disordered(&config.upcasts));
    faults.extend(config.processors.iter().filter_map(|declared| find_blind(declared, &config.upcasts)));
    for registered in registry.declarations() {
        let said = config.said.remove(&registered.name).unwrap_or_default();
        let program = registry.settings(&registered.name).cloned().unwrap_or_default();
        let completed = complete(config, registered, &said.or(&program));
        faults.extend(find_endless(&completed));
        match config.processors.iter_mut().find(|declared| declared.name == registered.name) {
            Some(declared) => *declared = joined(declared, completed),
            None => config.processors.push(completed),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// What the program has registered, with what the file alone says, or says as well.
fn joined(declared: &ProcessorDeclaration, completed: ProcessorDeclaration) -> ProcessorDeclaration {
    let checks = completed.checks.iter().chain(&declared.checks).cloned().collect();
    ProcessorDeclaration { reads: declared.reads.clone(), checks, ..completed }
}

/// How a declared processor contradicts what the program has registered.
fn find_contradiction(declared: &ProcessorDeclaration, registry: &Registry) -> Option<String> {
    let ProcessorDeclaration { name, handling, .. } = declared;
    match (handling, registry.declaration(name)) {
        (Handling::Native(_), Some(registered)) => {
            let kind = registered.kind().as_str();
            let complaint =
                format!("processor {name} is a {kind} in this program: declare it under [{kind}]");
            (declared.kind() != registered.kind()).then_some(complaint)
        }
        (Handling::Native(_), None) => Some(format!(
            "processor {name} is native, and this program has not registered it: run the program that has"
        )),
        (_, Some(_)) => Some(format!(
            "processor {name} is registered by this program: declare it with `native = true`, or give one of the two \
             another name"
        )),
        (_, None) => None,
    }
}

/// Why a processor that is not in Rust cannot read its events: an upcast makes their bodies in Rust.
fn find_blind(declared: &ProcessorDeclaration, upcasts: &[Upcast]) -> Option<String> {
    if matches!(declared.handling, Handling::Native(_)) {
        return None;
    }
    let types = declared.event_types().map(|types| types.into_iter().collect::<Vec<_>>());
    let made = find_unreadable(upcasts, types.as_deref())?;
    Some(format!(
        "processor {} is not in Rust, and the bodies of {made} are made in Rust by an upcast of this program: write the upcast in SQL, or \
         the processor in Rust",
        declared.name
    ))
}

/// What the program has registered, run as the settings say, and for the rest as all processors of the configuration are.
fn complete(
    config: &Config,
    registered: &ProcessorDeclaration,
    settings: &ProcessorSettings,
) -> ProcessorDeclaration {
    let on_handler_change = match (registered.kind(), config.runner.on_handler_change) {
        // What a reactor has done cannot be undone.
        (ProcessorKind::Reactor, OnHandlerChange::Rebuild) => OnHandlerChange::Warn,
        (_, on_handler_change) => on_handler_change,
    };
    let mut completed = ProcessorDeclaration {
        batch: config.runner.batch,
        retry: config.retry,
        isolation: config.runner.isolation.clone(),
        on_handler_change,
        ..registered.clone()
    };
    settings.apply_to(&mut completed);
    completed
}

/// What in a retry policy that two have made together never happens, or goes backward.
fn find_endless(declaration: &ProcessorDeclaration) -> Option<String> {
    let ProcessorDeclaration { name, retry, .. } = declaration;
    if retry.on_failure != OnFailure::Retry && retry.max_attempts.is_none() {
        return Some(format!(
            "{name}: what is to happen on_failure never happens, because attempts have no end: say max_attempts as well"
        ));
    }
    let shrinks = retry.max < retry.initial;
    shrinks.then(|| format!("{name}: the longest delay of its retries is less than the first one"))
}
