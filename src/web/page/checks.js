export function showChecks() {}
