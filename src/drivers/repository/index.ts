export { DirectoryRepository, type DirectoryRepositoryOptions } from "./directory-repository.js";
