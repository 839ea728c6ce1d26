export interface TreeItem {
  readonly name: string;
  /** A parent that is not among the items counts as none. */
  readonly parent?: string | undefined;
}

/** Each item below its parent, one a line. */
export function tree<Item extends TreeItem>(items: readonly Item[], label: (item: Item) => string): string {
  const names = new Set(items.map(({ name }) => name));
  return items
    .filter(({ parent }) => parent === undefined || !names.has(parent))
    .map((root) => `${label(root)}\n${branches(items, label, root.name, "")}`)
    .join("");
}

function branches<Item extends TreeItem>(
  items: readonly Item[],
  label: (item: Item) => string,
  parent: string,
  indent: string,
): string {
  const children = items.filter((item) => item.parent === parent);
  return children
    .map((child, index) => {
      const isLast = index === children.length - 1;
      const below = branches(items, label, child.name, `${indent}${isLast ? "   " : "│  "}`);
      return `${indent}${isLast ? "└─ " : "├─ "}${label(child)}\n${below}`;
    })
    .join("");
}
