//! What a section of a processor itself says of how the processor is run, apart from what it inherits.

use crate::config::reader::tree::Section;
use crate::processing::declaration::{ProcessorDeclaration, ProcessorSettings, RetrySettings};

/// Which of the values of `declaration`, as it was read, the section itself has.
pub(crate) fn said_in(
    section: &Section<'_>,
    retry: Option<&Section<'_>>,
    declaration: &ProcessorDeclaration,
) -> ProcessorSettings {
    let ProcessorDeclaration { batch, reactor, .. } = declaration;
    let says = |key: &str| section.value_if_known(key).is_some();
    let retries = |key: &str| retry.is_some_and(|retry| retry.value_if_known(key).is_some());
    let policy = &declaration.retry;
    ProcessorSettings {
        batch_size: says("batch_size").then_some(batch.size),
        batch_size_max: says("batch_size_max").then_some(batch.size_max),
        batch_bytes: says("batch_bytes").then_some(batch.bytes),
        batch_time: says("batch_time").then_some(batch.time),
        batch_span: says("batch_span").then_some(batch.span),
        isolation: says("isolation").then(|| declaration.isolation.clone()),
        on_handler_change: says("on_handler_change").then_some(declaration.on_handler_change),
        handler_timeout: says("handler_timeout").then_some(declaration.handler_timeout),
        start: declaration.start,
        aggregate_column: declaration.aggregate_column.clone(),
        approve: says("approve").then_some(declaration.approve),
        chain_max: reactor.as_ref().filter(|_| says("chain_max")).map(|reactor| reactor.chain_max),
        retry: RetrySettings {
            strategy: retries("strategy").then_some(policy.strategy),
            initial: retries("initial").then_some(policy.initial),
            max: retries("max").then_some(policy.max),
            jitter: retries("jitter").then_some(policy.jitter),
            max_attempts: policy.max_attempts.filter(|_| retries("max_attempts")),
            on_failure: retries("on_failure").then_some(policy.on_failure),
        },
    }
}
