/** Of a list, as long as the API makes it. */
export const FIRST_PAGE = { pageSize: 0, pageToken: "" };
