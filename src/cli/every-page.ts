/** The largest that the API answers with. */
const PAGE_SIZE = 1000;

interface Page {
  readonly nextPageToken?: string | undefined;
}

/** Asks for one page after the other, until there is none left, and gives the items of all of them. */
export async function everyPage<Response extends Page, Item>(
  ask: (paging: { readonly pageSize: number; readonly pageToken: string }) => Promise<Response>,
  itemsOf: (response: Response) => readonly Item[],
): Promise<readonly Item[]> {
  const items: Item[] = [];
  for (let pageToken: string | undefined = ""; pageToken !== undefined;) {
    const response: Response = await ask({ pageSize: PAGE_SIZE, pageToken });
    items.push(...itemsOf(response));
    pageToken = response.nextPageToken;
  }
  return items;
}
