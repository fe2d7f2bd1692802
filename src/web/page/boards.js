export function showBoard() {}
