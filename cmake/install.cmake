# Installs the library for C and C++ programs: find_package(autodeploy) gives the target autodeploy::autodeploy. A Python wheel
# (SKBUILD) holds the extension module alone.
if(NOT TARGET autodeploy OR SKBUILD)
  return()
endif()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS autodeploy EXPORT autodeploy-targets COMPONENT sdk
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT sdk NAMELINK_COMPONENT sdk)
if(TARGET autodeploy_cuda)  # loaded from the folder of the library
  install(TARGETS autodeploy_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT sdk)
endif()
if(AUTODEPLOY_TOOLS AND TARGET autodeploy_run)
  install(TARGETS autodeploy_run RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT sdk)
  set_target_properties(autodeploy_run PROPERTIES
                        INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/cpp/include/autodeploy DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT sdk)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/autodeploy)
install(EXPORT autodeploy-targets NAMESPACE autodeploy:: DESTINATION ${package_dir} COMPONENT sdk)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/autodeploy-config.cmake.in
                              ${PROJECT_BINARY_DIR}/cmake/autodeploy-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/autodeploy-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cmake/autodeploy-config.cmake
              ${PROJECT_BINARY_DIR}/cmake/autodeploy-config-version.cmake
        DESTINATION ${package_dir} COMPONENT sdk)
