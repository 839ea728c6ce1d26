import { describe, expect, it } from "vitest";
import { page } from "../../../src/api/page.js";

const SCOPE = ["numbers", null];
const keyOf = (item: number) => [item % 2 === 0 ? "even" : "odd", item];
const ask = (items: readonly number[], pageSize: number, pageToken = "", scope = SCOPE) =>
  page(items, { pageSize, pageToken }, scope, keyOf);

describe("page", () => {
  it("gives all items once, in the order of their keys, and no token with the last", () => {
    const seen: number[] = [];
    let token: string | undefined = "";
    while (token !== undefined) {
      const { items, nextPageToken } = ask([5, 1, 4, 10, 3, 2], 2, token);
      expect(items.length).toBe(2);
      seen.push(...items);
      token = nextPageToken;
    }
    expect(seen).toEqual([2, 4, 10, 1, 3, 5]);
  });

  it("goes on at the same place when items were added and removed meanwhile", () => {
    const { nextPageToken } = ask([2, 4, 6, 1], 2);
    expect(ask([8, 6, 3, 2, 1], 10, nextPageToken).items).toEqual([6, 8, 1, 3]);
  });

  it("takes 100 for no size and 1000 for a larger one", () => {
    const many = Array.from({ length: 3000 }, (_, index) => index);
    expect(ask(many, 0).items).toHaveLength(100);
    expect(ask(many, 5000).items).toHaveLength(1000);
  });

  it("is empty and the last when there is nothing", () => {
    expect(ask([], 0)).toEqual({ items: [], nextPageToken: undefined });
  });

  it("refuses a token of another list, one that is none, and a negative size", () => {
    const { nextPageToken = "" } = ask([1, 2, 3], 1);
    const refused = (field: string) =>
      expect.objectContaining({ code: "INVALID_ARGUMENT", facts: { field } }) as Error;
    expect(() => ask([1], 1, nextPageToken, ["numbers", "other"])).toThrow(refused("pageToken"));
    expect(() => ask([1], 1, "nonsense")).toThrow(refused("pageToken"));
    expect(() => ask([1], 1, Buffer.from('[["numbers",null],[{}]]').toString("base64url"))).toThrow(
      refused("pageToken"),
    );
    expect(() => ask([1], -1)).toThrow(refused("pageSize"));
  });
});
